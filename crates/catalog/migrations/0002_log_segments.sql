-- What is in each file of a function's log, so that a reader need not open all of them.
CREATE TABLE log_segments (
    function TEXT NOT NULL,
    number INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    lines INTEGER NOT NULL,
    PRIMARY KEY (function, number)
) STRICT, WITHOUT ROWID;
