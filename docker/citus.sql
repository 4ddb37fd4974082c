-- Makes one cluster of three servers that have Citus and bq; on the coordinator, by psql, which is
-- told each as host:port.  May be run again.
SELECT citus_set_coordinator_host(split_part(:'coordinator', ':', 1), split_part(:'coordinator', ':', 2)::int);
SELECT citus_add_node(split_part(node, ':', 1), split_part(node, ':', 2)::int)
FROM unnest(ARRAY[:'first', :'second']) AS node;
