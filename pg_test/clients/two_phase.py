"""A transaction manager on psycopg's two-phase API (DB API 2.0, "Optional Two-Phase Commit Extensions")."""

import sys

import psycopg

from conversation import converse

conninfo = f"host=127.0.0.1 port={sys.argv[1]} dbname=postgres user=postgres"


def connect():
    connection = psycopg.connect(conninfo)
    if "pooled" in sys.argv:
        connection.prepare_threshold = None
    return connection


connection = connect()


def reconnect():
    global connection
    connection.close()
    connection = connect()


def start(name):
    connection.tpc_begin(connection.xid(1, name, "coordinator"))


def insert(id):
    for table in ("ft1", "ft2"):
        connection.execute(f"INSERT INTO {table} VALUES (%s, %s)", (int(id), "x"))


def insert_many(first, count):
    """Sent without waiting for answers in between, in psycopg's pipeline mode."""
    rows = [(id, "x") for id in range(int(first), int(first) + int(count))]
    with connection.pipeline(), connection.cursor() as cursor:
        for table in ("ft1", "ft2"):
            cursor.executemany(f"INSERT INTO {table} VALUES (%s, %s)", rows)


def prepare():
    connection.tpc_prepare()


def commit():
    """The transaction that this connection has started, prepared or not."""
    connection.tpc_commit()


def rollback():
    connection.tpc_rollback()


def recover():
    """What is prepared, by its name."""
    return [xid.gtrid for xid in connection.tpc_recover()]


def commit_recovered(name):
    connection.tpc_commit(recovered(name))


def rollback_recovered(name):
    connection.tpc_rollback(recovered(name))


def recovered(name):
    [xid] = [xid for xid in connection.tpc_recover() if xid.gtrid == name]
    return xid


converse({
    "reconnect": reconnect,
    "start": start,
    "insert": insert,
    "insert_many": insert_many,
    "prepare": prepare,
    "commit": commit,
    "rollback": rollback,
    "recover": recover,
    "commit_recovered": commit_recovered,
    "rollback_recovered": rollback_recovered,
})
