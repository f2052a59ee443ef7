//! The languages that are measured, and how each is started without Hearth around it.

/// One measured language.
#[derive(Debug)]
pub(crate) struct Language {
    /// Its name on the command line, and that of its runtime.
    pub(crate) name: &'static str,
    /// Its name in headings.
    pub(crate) title: &'static str,
    /// The function's file in `bench/functions/NAME`.
    pub(crate) entrypoint: &'static str,
    /// The worker as its `runtime.toml` starts it, relative to `runtimes/`.
    pub(crate) worker: Worker,
    /// The interpreter running an empty program.
    pub(crate) empty_program: &'static [&'static str],
    /// The label of the bare server that Hearth is held against.
    pub(crate) bare: &'static str,
}

/// How a worker is started by hand.
#[derive(Debug)]
pub(crate) struct Worker {
    /// The interpreter and its options.
    pub(crate) program: &'static [&'static str],
    /// The worker's main file, relative to `runtimes/`.
    pub(crate) file: &'static str,
}

/// All of them.
pub(crate) const LANGUAGES: [Language; 2] = [
    Language {
        name: "node",
        title: "Node",
        entrypoint: "index.js",
        worker: Worker { program: &["/usr/bin/node"], file: "javascript/src/worker.js" },
        empty_program: &["/usr/bin/node", "-e", "0"],
        bare: "node:http",
    },
    Language {
        name: "python",
        title: "Python",
        entrypoint: "main.py",
        worker: Worker {
            program: &["/usr/bin/python3", "-I", "-S", "-X", "utf8"],
            file: "python/src/worker.py",
        },
        empty_program: &["/usr/bin/python3", "-I", "-S", "-c", "pass"],
        bare: "aiohttp",
    },
];
