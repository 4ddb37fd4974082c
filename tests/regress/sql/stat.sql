-- bq_stat_indexes: what scans did, what an index tells of itself.

SET stats_fetch_consistency = none;
SET enable_seqscan = off;
CREATE TABLE watched (id int, code bqvec(8));
INSERT INTO watched SELECT i, bq_encode(random_vector(8, i)) FROM generate_series(1, 320) AS i;
CREATE INDEX watched_code ON watched USING bq (code);
SELECT count(*) FROM (SELECT FROM watched ORDER BY code <=> bq_query(random_vector(8, 1)) LIMIT 5) AS five;
SELECT count(*) FROM (SELECT FROM watched ORDER BY code <=> bq_query(random_vector(8, 2)) LIMIT 5) AS five;
SELECT pg_stat_force_next_flush();
SELECT schemaname, relname, indexrelname, idx_scan, idx_tup_read, idx_tup_fetch, lists_read, codes_compared,
	vectors_compared, rows, total_bytes, dim, transform, lists, build_rows, changed_lists, last_split, valid
FROM bq_stat_indexes WHERE relid = 'watched'::regclass \gx

-- What has nothing to tell is null, and no error.
SELECT bq_index_summary('watched') = bq_index_summary(1) AS same, bq_index_summary('watched_code') IS NULL AS nothing;
DROP TABLE watched;
