-- Run once, in a new database.
CREATE EXTENSION vector;
CREATE EXTENSION bq;
CREATE EXTENSION bq_pgvector;
