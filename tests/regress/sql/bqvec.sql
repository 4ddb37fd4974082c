-- bqvec: text, binary, COPY, typmod, and what they reject.

SELECT '0:1.25:0312'::bqvec;
SELECT '  65535:3e-05:1 '::bqvec;
SELECT '0:0:1111'::bqvec AS zero_vector;
SELECT '1:1e-45:2'::bqvec AS smallest_norm, '1:2.6584557e+36:2'::bqvec AS largest_norm;
SELECT vector_dims('3:1.5:0312'::bqvec), vector_norm('3:1.5:0312'::bqvec),
	transform('3:1.5:0312'::bqvec);

-- The wire format: dim, transform, norm, sign plane, magnitude plane.
SELECT bqvec_send('258:1.5:0123'), bqvec_send('0:1:332211003');

-- Header 8 bytes, planes, and a varlena header of 1 byte in a table, 4 in memory.
CREATE TABLE sizes (code bqvec);
INSERT INTO sizes SELECT bq_encode(random_vector(384, 1));
SELECT pg_column_size(code) AS stored, pg_column_size(bq_encode(random_vector(384, 1))) AS in_memory
FROM sizes;
-- The largest code stays in its row.
INSERT INTO sizes SELECT bq_encode(random_vector(16000, 1));
SELECT vector_dims(code), pg_column_size(code) FROM sizes ORDER BY 1;
SELECT pg_relation_size(reltoastrelid) AS toasted FROM pg_class WHERE oid = 'sizes'::regclass;
DROP TABLE sizes;

-- Text and binary give back what they were given, at every dim that ends in another bit.
CREATE TABLE codes AS
	SELECT dim, transform, bq_encode(random_vector(dim, dim), transform) AS code
	FROM generate_series(1, 130) AS dim, (VALUES (0), (1), (65535)) AS t(transform);
INSERT INTO codes
	SELECT dim, 0, bq_encode(random_vector(dim, dim))
	FROM (VALUES (384), (768), (1000), (1024), (1536), (3072), (16000)) AS d(dim);
INSERT INTO codes VALUES (NULL, NULL, NULL), (5, 0, bq_encode('{0,0,0,0,0}'));
SELECT count(*) FROM codes;
SELECT count(*) AS changed_by_text FROM codes WHERE code::text::bqvec <> code;
SELECT count(*) AS misread FROM codes
WHERE vector_dims(code) <> dim OR transform(code) <> codes.transform;
SELECT count(*) AS wrong_length FROM codes
WHERE length(bqvec_send(code)) <> 8 + 2 * ((dim + 7) / 8);

-- COPY, in files that the server can write
SELECT current_setting('data_directory') || '/bq_regress' AS file \gset
CREATE TABLE copied (dim int, transform int, code bqvec);
COPY codes TO :'file';
COPY copied FROM :'file';
COPY codes TO :'file' (FORMAT binary);
COPY copied FROM :'file' (FORMAT binary);
SELECT count(*) FROM copied;
SELECT count(*) AS lost FROM (TABLE codes EXCEPT ALL TABLE copied) AS l;
SELECT count(*) AS copies_of_each FROM copied GROUP BY dim, transform, code::text ORDER BY 1 LIMIT 1;
DROP TABLE copied;

-- typmod
CREATE TABLE declared (code bqvec(4));
SELECT format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'declared'::regclass AND attnum = 1;
INSERT INTO declared VALUES ('0:1:0123'), (ARRAY[1, 2, 3, 4]::real[]), (NULL);
SELECT * FROM declared;
SELECT '0:1:0123'::bqvec(4), '0:1:0123'::bqvec::bqvec(4);
SELECT statement, fails(statement) FROM (VALUES
	('INSERT INTO declared VALUES (''0:1:012'')'),
	('INSERT INTO declared VALUES (bq_encode(''{1,2}''))'),
	('INSERT INTO declared VALUES (''{1,2}''::real[])'),
	('SELECT ''0:1:012''::bqvec(4)'),
	('SELECT ''0:1:012''::bqvec::bqvec(4)'),
	('CREATE TABLE t (code bqvec(0))'),
	('CREATE TABLE t (code bqvec(-1))'),
	('CREATE TABLE t (code bqvec(16001))'),
	('CREATE TABLE t (code bqvec(4, -1))'),
	('CREATE TABLE t (code bqvec(4, 65536))'),
	('CREATE TABLE t (code bqvec(0, 1))'),
	('CREATE TABLE t (code bqvec(4, 0, 0))'),
	('CREATE TABLE t (code bqvec(''four''))')) AS s(statement);

-- typmod with a transform: codes of another one are refused, vectors are encoded with it
CREATE TABLE typed (id int, code bqvec(4, 7), axes bqvec(4,0), far bqvec(16000, 65535));
SELECT attname, atttypmod, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'typed'::regclass AND attnum > 1 ORDER BY attnum;
INSERT INTO typed VALUES (1, '7:1:0123', '0:1:0123'), (2, ARRAY[1, 2, 3, 4]::real[], ARRAY[1, 2, 3, 4]::real[]),
	(3, bq_encode('{1,2,3,4}', 7), NULL);
INSERT INTO typed (id, far) SELECT 4, bq_encode(random_vector(16000, 1), 65535);
SELECT id, code = bq_encode('{1,2,3,4}', 7) AS rotated, axes = bq_encode('{1,2,3,4}') AS on_axes, transform(far) FROM typed ORDER BY id;
SELECT ARRAY[1, 2, 3, 4]::real[]::bqvec(4,7) = bq_encode('{1,2,3,4}', 7) AS cast_encodes;
SELECT statement, fails(statement) FROM (VALUES
	('INSERT INTO typed (code) VALUES (''0:1:0123'')'),
	('INSERT INTO typed (code) VALUES (bq_encode(''{1,2,3,4}''))'),
	('INSERT INTO typed (code) VALUES (bq_encode(''{1,2,3,4}'', 8))'),
	('INSERT INTO typed (code) VALUES (bq_encode(''{1,2,3}'', 7))'),
	('INSERT INTO typed (axes) VALUES (bq_encode(''{1,2,3,4}'', 7))'),
	('UPDATE typed SET code = axes WHERE id = 1'),
	('SELECT bq_encode(''{1,2,3,4}'', 8)::bqvec(4,7)'),
	('ALTER TABLE declared ALTER code TYPE bqvec(4,7)')) AS s(statement);
ALTER TABLE declared ALTER code TYPE bqvec(4,0);
SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'declared'::regclass AND attnum = 1;
DROP TABLE typed;

-- Text that is rejected
SELECT input, fails(format('SELECT %L::bqvec', input)) FROM (VALUES
	(''), (' '), ('0'), (':'), ('0:'), ('0:1'), ('0:1:'), ('0::0123'), (':1:0123'),
	('x:1:0123'), ('-1:1:0123'), ('+1:1:0123'), ('65536:1:0123'), ('99999999999999999999:1:0123'),
	('0:x:0123'), ('0:1x:0123'), ('0:1:01234'), ('0:1:0123x'), ('0:1:01 23'), ('0:1:0123:'),
	('0 :1:0123'), ('0:nan:0123'), ('0:inf:0123'), ('0:-1:0123'), ('0:-0:1111'), ('0:1e39:0123'),
	('0:3e36:0123'), ('0:1e-60:0123'), ('0:0:0123'), ('{1,2}')) AS i(input);
SELECT fails(format('SELECT %L::bqvec', '0:1:' || repeat('2', 16001)));

-- From PostgreSQL 16 on, the same as soft errors
CREATE FUNCTION is_valid(input text, type text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	valid boolean;
BEGIN
	EXECUTE format('SELECT %L::%s', input, type);
	IF current_setting('server_version_num')::int >= 160000 THEN
		EXECUTE 'SELECT pg_input_is_valid($1, $2)' INTO STRICT valid USING input, type;
		RETURN valid;
	END IF;
	RETURN true;
EXCEPTION WHEN data_exception OR invalid_text_representation OR numeric_value_out_of_range THEN
	IF current_setting('server_version_num')::int >= 160000 THEN
		EXECUTE 'SELECT pg_input_is_valid($1, $2)' INTO STRICT valid USING input, type;
		RETURN valid;
	END IF;
	RETURN false;
END
$$;
SELECT type, input, is_valid(input, type) FROM (VALUES
	('bqvec', '0:1:0123'), ('bqvec', 'x'), ('bqvec', '65536:1:0123'), ('bqvec', '0:x:0123'),
	('bqvec', '0:1x0123'), ('bqvec', '0:1:0124'), ('bqvec', '0:1:'), ('bqvec', '0:-1:0123'), ('bqvec', '0:1e39:0123'),
	('bqvec(4)', '0:1:0123'), ('bqvec(4)', '0:1:012'), ('bqvec(4,7)', '7:1:0123'), ('bqvec(4,7)', '0:1:0123'),
	('bqquery', '0:[1]'), ('bqquery', 'x'), ('bqquery', '0:1'), ('bqquery', '0:[1'), ('bqquery', '0:[1]1'),
	('bqquery', '0:[nan]'), ('bqquery', '0:[x]')) AS i(type, input);
DROP FUNCTION is_valid;

-- Bytes that are rejected: COPY a bytea, read it as a bqvec.
CREATE TABLE received (code bqvec);
SELECT current_setting('data_directory') || '/bq_regress' AS file \gset
CREATE FUNCTION receive(bytes bytea, file text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('COPY (SELECT %L::bytea) TO %L (FORMAT binary)', bytes, file);
	RETURN fails(format('COPY received FROM %L (FORMAT binary)', file));
END
$$;
SELECT what, receive(bytes, :'file') FROM (VALUES
	('good, 4 dimensions', '\x00040102 3fc00000 0c 09'::bytea),
	('good, zero vector', '\x00040000 00000000 00 00'),
	('empty', '\x'),
	('half a header', '\x00040000'),
	('a header only', '\x00040000 3fc00000'),
	('one plane', '\x00040000 3fc00000 0c'),
	('a byte too many', '\x00040000 3fc00000 0c 09 00'),
	('no dimensions', '\x00000000 3fc00000'),
	('16001 dimensions', '\x3e810000 3fc00000 0c 09'),
	('65535 dimensions', '\xffff0000 3fc00000 0c 09'),
	('16000 dimensions, short', '\x3e800000 3fc00000 0c 09'),
	('bit beyond dim in signs', '\x00040000 3fc00000 1c 09'),
	('bit beyond dim in magnitudes', '\x00040000 3fc00000 0c 89'),
	('norm NaN', '\x00040000 7fc00000 0c 09'),
	('norm infinite', '\x00040000 7f800000 0c 09'),
	('norm negative', '\x00040000 bfc00000 0c 09'),
	('norm -0', '\x00040000 80000000 00 00'),
	('norm too large', '\x00040000 7f7fffff 0c 09'),
	('norm 0, bits set', '\x00040000 00000000 0c 09')) AS b(what, bytes);
SELECT * FROM received;
COPY (SELECT) TO PROGRAM 'cat > /dev/null && rm bq_regress';
DROP FUNCTION receive;
DROP TABLE codes, declared, received;
