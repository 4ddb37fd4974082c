-- bq_encode_trigger: codes in step with vectors, whoever writes them.

CREATE TABLE items (id int PRIMARY KEY, v real[], code bqvec(3), note text);
SELECT bq_register_column('items', 'code', 'v', 3, 'cosine');
CREATE TRIGGER encode BEFORE INSERT OR UPDATE OF v ON items FOR EACH ROW
	EXECUTE FUNCTION bq_encode_trigger('code', 'v');

-- before the decision there is nothing to encode by
SELECT fails('INSERT INTO items VALUES (0, ''{1,2,3}'')');
SELECT bq_decide('items', 'code', 2, bq_statistics('{1,2,3}'::real[]), NULL, NULL, NULL);

-- INSERT, COPY, INSERT ... ON CONFLICT
INSERT INTO items (id, v) VALUES (1, '{1,2,3}'), (2, NULL);
COPY items (id, v) FROM stdin;
3	{3,2,-1}
4	{0,0,0}
\.
INSERT INTO items (id, v) VALUES (1, '{9,8,-7}') ON CONFLICT (id) DO UPDATE SET v = excluded.v;
SELECT id, code = bq_encode(v, 2) AS in_step FROM items ORDER BY id;

-- UPDATE: a stale code is replaced, a null is filled, a vector taken away takes its code along
UPDATE items SET v = '{-1,-2,5}' WHERE id = 3;
UPDATE items SET v = '{1,1,2}' WHERE id = 2;
UPDATE items SET v = NULL WHERE id = 4;
SELECT id, v, code = bq_encode(v, 2) AS in_step FROM items ORDER BY id;
UPDATE items SET note = 'seen';
UPDATE items SET v = v;
SELECT bool_and(code = bq_encode(v, 2)) AS in_step, count(code) FROM items;

-- a code that is given stays, whether the vector changes or not, if queries can be compared with it
INSERT INTO items VALUES (5, '{1,2,3}', bq_encode('{3,-2,1}', 2));
UPDATE items SET v = '{4,4,4}', code = bq_encode('{5,-5,5}', 2) WHERE id = 1;
SELECT id, code = bq_encode('{3,-2,1}', 2) AS first, code = bq_encode('{5,-5,5}', 2) AS second
FROM items WHERE id IN (1, 5) ORDER BY id;
SELECT statement, fails(statement) FROM (VALUES
	('INSERT INTO items VALUES (6, ''{1,2,3}'', bq_encode(''{1,2,3}'', 1))'),
	('UPDATE items SET v = ''{0,1,2}'', code = bq_encode(''{0,1,2}'', 1)'),
	('INSERT INTO items (id, v) VALUES (6, ''{1,2}'')'),
	('UPDATE items SET v = ''{nan,1,2}''')) AS s(statement);

-- who may only write needs no privilege on bq_columns
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_bq_writer;
RESET client_min_messages;
CREATE ROLE regress_bq_writer;
GRANT INSERT ON items TO regress_bq_writer;
SET ROLE regress_bq_writer;
INSERT INTO items (id, v) VALUES (7, '{7,1,2}');
RESET ROLE;
SELECT code = bq_encode(v, 2) AS in_step FROM items WHERE id = 7;

-- a partition is encoded as the table it is part of
CREATE TABLE parts (id int, v real[], code bqvec(3)) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
CREATE TABLE parts_2 PARTITION OF parts_1 FOR VALUES FROM (0) TO (10);
CREATE TRIGGER encode BEFORE INSERT OR UPDATE OF v ON parts FOR EACH ROW
	EXECUTE FUNCTION bq_encode_trigger('code', 'v');
SELECT fails('INSERT INTO parts VALUES (1, ''{1,2,3}'')');
SELECT bq_register_column('parts', 'code', 'v', 3, 'cosine', 4);
INSERT INTO parts VALUES (1, '{1,2,3}');
INSERT INTO parts_2 VALUES (2, '{3,2,1}');
SELECT bool_and(code = bq_encode(v, 4)) AS in_step, count(*) FROM parts;
DROP TABLE parts;

-- any type with a cast will do, unless it has nothing to say
CREATE TYPE three AS (x real, y real, z real);
CREATE FUNCTION array_of(three) RETURNS real[] LANGUAGE sql IMMUTABLE
	AS 'SELECT CASE WHEN ($1).x <> 0 THEN ARRAY[($1).x, ($1).y, ($1).z] END';
CREATE CAST (three AS real[]) WITH FUNCTION array_of(three);
CREATE TABLE threes (v three, code bqvec(3));
CREATE TRIGGER encode BEFORE INSERT ON threes FOR EACH ROW
	EXECUTE FUNCTION bq_encode_trigger('code', 'v', '1');
INSERT INTO threes VALUES ('(1,2,3)');
SELECT code = bq_encode('{1,2,3}', 1) AS in_step FROM threes;
SELECT fails('INSERT INTO threes VALUES (''(0,1,2)'')');
DROP TABLE threes;
DROP CAST (three AS real[]);
DROP FUNCTION array_of;
DROP TYPE three;

-- the transform may be named, and then bq_columns is not needed
CREATE TABLE others (id int, v real[], code bqvec);
CREATE TRIGGER encode BEFORE INSERT OR UPDATE ON others FOR EACH ROW
	EXECUTE FUNCTION bq_encode_trigger('code', 'v', '7');
INSERT INTO others VALUES (1, '{1,2}'), (2, '{1,2,3}');
UPDATE others SET code = NULL;
SELECT bool_and(code = bq_encode(v, 7)) AS in_step FROM others;

-- or the type has it
CREATE TABLE typed (id int, v real[], code bqvec(3,7));
CREATE TRIGGER encode BEFORE INSERT ON typed FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger('code', 'v');
INSERT INTO typed VALUES (1, '{1,2,3}');
SELECT code = bq_encode(v, 7) AS in_step FROM typed;
CREATE OR REPLACE TRIGGER encode BEFORE INSERT ON typed FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger('code', 'v', '8');
SELECT fails('INSERT INTO typed VALUES (2, ''{1,2,3}'')');
DROP TABLE typed;

-- what a trigger may be
CREATE TABLE wrong (v text, code bqvec, w real[], n int DEFAULT 1, g real[] GENERATED ALWAYS AS (w || 1::real) STORED);
CREATE FUNCTION fails_as(definition text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	failure text;
BEGIN
	EXECUTE 'CREATE TRIGGER t ' || definition;
	failure = fails('INSERT INTO wrong (w) VALUES (''{1,2}'')');
	DROP TRIGGER t ON wrong;
	RETURN failure;
END
$$;
SELECT definition, fails_as(definition) FROM (VALUES
	('BEFORE INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger(''code'', ''w'')'),
	('BEFORE INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger(''code'')'),
	('BEFORE INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger(''code'', ''v'', ''0'')'),
	('BEFORE INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger(''code'', ''x'', ''0'')'),
	('BEFORE INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger(''n'', ''w'', ''0'')'),
	('BEFORE INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger(''code'', ''w'', ''65536'')'),
	('BEFORE INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger(''code'', ''g'', ''0'')'),
	('AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger(''code'', ''w'', ''0'')'),
	('BEFORE INSERT ON wrong FOR EACH STATEMENT EXECUTE FUNCTION bq_encode_trigger(''code'', ''w'', ''0'')')) AS s(definition);

DELETE FROM bq_column_data;
DROP FUNCTION fails_as(text);
DROP TABLE items, others, wrong;
DROP ROLE regress_bq_writer;
