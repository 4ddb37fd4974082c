-- Run once, in a new database.
CREATE EXTENSION vector;
CREATE EXTENSION bq;
