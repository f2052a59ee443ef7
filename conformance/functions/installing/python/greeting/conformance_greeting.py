GREETING = "hello from a package"
