-- A deployment is immutable but for what becomes of it. A function exists from its first activation.
-- Rows are numbered in the order of their making, whatever the clock says.
CREATE TABLE deployments (
    id TEXT PRIMARY KEY,
    function TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'active', 'superseded', 'failed')),
    runtime TEXT NOT NULL,
    entrypoint TEXT NOT NULL,
    settings TEXT NOT NULL,
    artifact TEXT,
    artifact_bytes INTEGER NOT NULL DEFAULT 0,
    failure TEXT,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX deployments_of_function ON deployments (function);
CREATE INDEX deployments_by_state ON deployments (state, artifact);
CREATE UNIQUE INDEX one_active_deployment ON deployments (function) WHERE state = 'active';

CREATE TABLE functions (
    name TEXT PRIMARY KEY,
    active TEXT NOT NULL REFERENCES deployments (id),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
