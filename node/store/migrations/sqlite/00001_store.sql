-- +goose Up

-- The nodes whose data is here. batch is the number of the last transaction of
-- the node: it tells a writer that lost its connection whether its COMMIT came
-- through, and one that another process has taken over.
CREATE TABLE owners (
	id    INTEGER PRIMARY KEY,
	agent TEXT    NOT NULL UNIQUE,
	batch INTEGER NOT NULL
);

CREATE TABLE sessions (
	owner   INTEGER NOT NULL,
	session BLOB    NOT NULL,
	data    BLOB,
	PRIMARY KEY (owner, session)
);

-- What must outlive the rows that it was counted from: the highest sequence
-- that the outbox ever gave (of rows since pruned), the highest cursor of the
-- inbox, the floor of the idempotency window.
CREATE TABLE counters (
	owner   INTEGER NOT NULL,
	session BLOB    NOT NULL,
	last    INTEGER NOT NULL DEFAULT 0,
	cursor  INTEGER NOT NULL DEFAULT 0,
	floor   INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (owner, session)
) WITHOUT ROWID;

-- outcome is NULL while a message is pending; message and body are NULL after.
-- settled is the time of the outcome in nanoseconds since 1970.
CREATE TABLE outbox (
	owner    INTEGER NOT NULL,
	session  BLOB    NOT NULL,
	sequence INTEGER NOT NULL,
	key      BLOB    NOT NULL,
	message  BLOB,
	settled  INTEGER,
	outcome  BLOB,
	body     BLOB,
	PRIMARY KEY (owner, session, sequence),
	UNIQUE (owner, session, key)
);

CREATE TABLE inbox (
	owner    INTEGER NOT NULL,
	session  BLOB    NOT NULL,
	sequence INTEGER NOT NULL,
	key      BLOB    NOT NULL,
	message  BLOB    NOT NULL,
	body     BLOB,
	PRIMARY KEY (owner, session, sequence)
);

CREATE TABLE finished (
	owner    INTEGER NOT NULL,
	session  BLOB    NOT NULL,
	sequence INTEGER NOT NULL,
	outcome  BLOB    NOT NULL,
	PRIMARY KEY (owner, session, sequence)
);

CREATE TABLE documents (
	owner  INTEGER NOT NULL,
	bucket BLOB    NOT NULL,
	key    BLOB    NOT NULL,
	value  BLOB,
	PRIMARY KEY (owner, bucket, key)
);
