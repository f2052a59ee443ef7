def main(context):
    if context.req.path == "/log":
        context.log("one line")
    return context.res.text("Hello, World!")
