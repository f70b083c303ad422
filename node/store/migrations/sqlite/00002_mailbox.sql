-- +goose Up

-- The agents that letters are kept for. They have no owner: relays that share a
-- database share the mailboxes. Times are in seconds since 1970.
--
-- last is the cursor of the newest letter there ever was; letters and bytes are
-- the sums over the table letters. Whoever changes letters locks the row here
-- first, until COMMIT: so sums stay exact, and a letter cannot become visible
-- after one with a higher cursor.
CREATE TABLE mailboxes (
	recipient TEXT    NOT NULL PRIMARY KEY,
	version   INTEGER NOT NULL,
	expires   INTEGER NOT NULL,
	last      INTEGER NOT NULL,
	letters   INTEGER NOT NULL DEFAULT 0,
	bytes     INTEGER NOT NULL DEFAULT 0
);

-- expires is the letter's own, until is when this relay drops it. digest says
-- whether two letters are the same.
CREATE TABLE letters (
	recipient TEXT    NOT NULL,
	cursor    INTEGER NOT NULL,
	digest    BLOB    NOT NULL,
	id        BLOB    NOT NULL,
	depositor BLOB    NOT NULL,
	expires   INTEGER NOT NULL,
	until     INTEGER NOT NULL,
	size      INTEGER NOT NULL,
	body      BLOB    NOT NULL,
	PRIMARY KEY (recipient, cursor),
	UNIQUE (recipient, digest)
);

CREATE INDEX letters_by_depositor ON letters (recipient, depositor, size);
CREATE INDEX letters_by_until ON letters (until);
