-- Which catalog this is, and how often it has changed what must be kept beside it. The stores note
-- both, so that a catalog that is older than they are, or another one, is noticed.
CREATE TABLE identity (
    id TEXT NOT NULL,
    generation INTEGER NOT NULL
) STRICT;

INSERT INTO identity (id, generation) VALUES (lower(hex(randomblob(16))), 0);
