"""One interface to psycopg's two kinds of connection, so that everything is written once.

What pybq does with a database are coroutines over a `Database`. Over an `AsyncConnection` they
wait for the server. Over a `Connection` each step blocks until it is done, so that the coroutine
never waits, and `run` has its result without an event loop.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar, cast
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, AsyncCursor, BaseConnection, Connection, Cursor, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types import TypeInfo

from pybq.psycopg import register_bq, register_bq_async

Statement: TypeAlias = str | sql.SQL | sql.Composed
Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any] | None
Row: TypeAlias = tuple[Any, ...]

T = TypeVar("T")


class CopyStream(Protocol):
    """Takes the bytes of a COPY FROM STDIN."""

    async def write(self, data: bytes) -> None: ...


class Database(ABC):
    """What operations need of a connection."""

    @property
    @abstractmethod
    def connection(self) -> BaseConnection[Any]:
        """For its adapters and its state; not to be executed on."""

    @abstractmethod
    async def register(self) -> None:
        """Register the adapters of bqvec and bqquery; ExtensionMissingError without them."""

    @abstractmethod
    async def find_type(self, name: str) -> TypeInfo | None:
        """Look a type up, of an extension that may be missing."""

    @abstractmethod
    async def execute(self, statement: Statement, parameters: Parameters = None) -> int:
        """Run a statement; return the number of rows that it changed."""

    @abstractmethod
    async def fetch(self, statement: Statement, parameters: Parameters = None) -> list[Row]:
        """Return the rows of a query, and leave no transaction open that was not."""

    @abstractmethod
    async def fetch_each(
        self, statement: Statement, parameters: Sequence[Parameters]
    ) -> list[list[Row]]:
        """Return the rows of a query for each set of parameters, sent in one go (a pipeline)."""

    @abstractmethod
    def transaction(self, force_rollback: bool = False) -> AbstractAsyncContextManager[Any]:
        """Begin a transaction, or a savepoint in the one that is open."""

    @abstractmethod
    def copy(self, statement: Statement) -> AbstractAsyncContextManager[CopyStream]:
        """Begin a COPY FROM STDIN."""

    @abstractmethod
    async def wait_for(self, future: Future[T]) -> T:
        """Wait for the result of another thread."""

    @abstractmethod
    async def compute(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that takes its time."""

    @abstractmethod
    async def set_autocommit(self, wanted: bool) -> None:
        """Let each statement commit by itself, or not."""

    @asynccontextmanager
    async def autocommitting(self) -> AsyncIterator[None]:
        """Let each statement commit by itself; no transaction may be open."""
        before = self.connection.autocommit
        await self.set_autocommit(True)
        try:
            yield
        finally:
            if not self.connection.closed:
                await self.set_autocommit(before)

    async def fetch_one(self, statement: Statement, parameters: Parameters = None) -> Row | None:
        """Return the first row of a query."""
        rows = await self.fetch(statement, parameters)
        return rows[0] if rows else None

    @property
    def in_transaction(self) -> bool:
        """Whether the caller has a transaction open."""
        return self.connection.pgconn.transaction_status != TransactionStatus.IDLE

    def reading(self) -> AbstractAsyncContextManager[Any]:
        """Leave no transaction open that was not: a later ingest would then not be committed."""
        if self.in_transaction or self.connection.autocommit:
            return nullcontext()
        return self.transaction()


class BlockingDatabase(Database):
    """Over a Connection: no method ever waits."""

    def __init__(self, connection: Connection[Any]) -> None:
        if not isinstance(connection, Connection):
            raise TypeError(f"expected a psycopg.Connection, got {type(connection).__name__}")
        self._connection = connection

    @property
    def connection(self) -> Connection[Any]:
        return self._connection

    async def register(self) -> None:
        register_bq(self._connection)

    async def find_type(self, name: str) -> TypeInfo | None:
        return TypeInfo.fetch(self._connection, name)

    async def execute(self, statement: Statement, parameters: Parameters = None) -> int:
        return self._execute(statement, parameters).rowcount

    async def fetch(self, statement: Statement, parameters: Parameters = None) -> list[Row]:
        async with self.reading():
            return self._execute(statement, parameters).fetchall()

    async def fetch_each(
        self, statement: Statement, parameters: Sequence[Parameters]
    ) -> list[list[Row]]:
        async with self.reading():
            with self._connection.pipeline():
                cursors = [self._execute(statement, each) for each in parameters]
                return [cursor.fetchall() for cursor in cursors]

    def transaction(self, force_rollback: bool = False) -> AbstractAsyncContextManager[Any]:
        return _Blocking(self._connection.transaction(force_rollback=force_rollback))

    def copy(self, statement: Statement) -> AbstractAsyncContextManager[CopyStream]:
        cursor = Cursor(self._connection, row_factory=tuple_row)
        return _BlockingCopy(cursor.copy(statement))

    async def wait_for(self, future: Future[T]) -> T:
        return future.result()

    async def compute(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    async def set_autocommit(self, wanted: bool) -> None:
        self._connection.autocommit = wanted

    def _execute(self, statement: Statement, parameters: Parameters) -> Cursor[Row]:
        # Not connection.cursor(): its class may be one of other placeholders.
        cursor = Cursor(self._connection, row_factory=tuple_row)
        if parameters is not None:
            statement = escape_percent(statement, self._connection)
        return cursor.execute(statement, parameters)


class AsyncDatabase(Database):
    """Over an AsyncConnection."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        if not isinstance(connection, AsyncConnection):
            raise TypeError(f"expected a psycopg.AsyncConnection, got {type(connection).__name__}")
        self._connection = connection
        self._lock = _locks.setdefault(connection, asyncio.Lock())

    @property
    def connection(self) -> AsyncConnection[Any]:
        return self._connection

    async def run(self, operation: Coroutine[Any, Any, T]) -> T:
        """Run an operation when those that other tasks began on this connection are done.

        A connection has one transaction at a time: a search beside an ingest would be a part of
        it, and two transactions that overlap would end in the wrong order.
        """
        try:
            async with self._lock:
                return await operation
        finally:
            operation.close()  # if it was cancelled before its turn

    async def register(self) -> None:
        await register_bq_async(self._connection)

    async def find_type(self, name: str) -> TypeInfo | None:
        return await TypeInfo.fetch(self._connection, name)

    async def execute(self, statement: Statement, parameters: Parameters = None) -> int:
        return (await self._execute(statement, parameters)).rowcount

    async def fetch(self, statement: Statement, parameters: Parameters = None) -> list[Row]:
        async with self.reading():
            return await (await self._execute(statement, parameters)).fetchall()

    async def fetch_each(
        self, statement: Statement, parameters: Sequence[Parameters]
    ) -> list[list[Row]]:
        async with self.reading(), self._connection.pipeline():
            cursors = [await self._execute(statement, each) for each in parameters]
            return [await cursor.fetchall() for cursor in cursors]

    @asynccontextmanager
    async def transaction(self, force_rollback: bool = False) -> AsyncIterator[Any]:
        outermost = not self.in_transaction
        try:
            async with self._connection.transaction(force_rollback=force_rollback) as began:
                yield began
        except asyncio.CancelledError:
            # If COMMIT itself was cancelled, psycopg leaves the transaction, which has failed.
            status = self._connection.pgconn.transaction_status
            if outermost and status == TransactionStatus.INERROR:
                await self._connection.rollback()
            raise

    @asynccontextmanager
    async def copy(self, statement: Statement) -> AsyncIterator[CopyStream]:
        copy = AsyncCursor(self._connection, row_factory=tuple_row).copy(statement)
        # To be cancelled while it begins would leave the connection in COPY for good: psycopg
        # cancels the statement, which may have begun by then, and ends only what it has returned.
        begin = asyncio.ensure_future(copy.__aenter__())
        try:
            stream = await asyncio.shield(begin)
        except asyncio.CancelledError as error:
            while not begin.done():  # it may wait for a lock
                with suppress(asyncio.CancelledError):
                    await self._connection.cancel_safe()
                    await asyncio.wait([begin], timeout=1)
            if begin.exception() is None:
                await copy.__aexit__(type(error), error, error.__traceback__)
            raise
        async with AsyncExitStack() as stack:
            stack.push_async_exit(copy)
            yield stream

    async def wait_for(self, future: Future[T]) -> T:
        return await asyncio.wrap_future(future)

    async def compute(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.to_thread(function, *arguments)

    async def set_autocommit(self, wanted: bool) -> None:
        await self._connection.set_autocommit(wanted)

    async def _execute(self, statement: Statement, parameters: Parameters) -> AsyncCursor[Row]:
        cursor = AsyncCursor(self._connection, row_factory=tuple_row)
        if parameters is not None:
            statement = escape_percent(statement, self._connection)
        return await cursor.execute(statement, parameters)


def escape_percent(statement: Statement, connection: BaseConnection[Any]) -> Statement:
    """Return a statement in whose names no percent sign is taken for a placeholder.

    psycopg looks for them wherever there are parameters.
    """
    if not isinstance(statement, sql.Composed):
        return statement
    parts: list[sql.Composable] = []
    for part in statement:
        if isinstance(part, sql.Composed):
            parts.append(cast(sql.Composed, escape_percent(part, connection)))
        elif isinstance(part, (sql.Identifier, sql.Literal)):
            parts.append(sql.SQL(part.as_string(connection).replace("%", "%%")))
        else:
            parts.append(part)
    return sql.Composed(parts)


_locks: WeakKeyDictionary[AsyncConnection[Any], asyncio.Lock] = WeakKeyDictionary()


def run(operation: Coroutine[Any, Any, T]) -> T:
    """Run an operation over a BlockingDatabase to its end."""
    try:
        operation.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    operation.close()
    raise AssertionError("an operation over a blocking connection waits")


class _Blocking(AbstractAsyncContextManager[Any]):
    """A context manager that blocks, in the dress of an asynchronous one."""

    def __init__(self, manager: AbstractContextManager[Any]) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        return self._manager.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._manager.__exit__(kind, error, traceback)


class _BlockingCopy(_Blocking):
    async def __aenter__(self) -> CopyStream:
        self._copy = self._manager.__enter__()
        return self

    async def write(self, data: bytes) -> None:
        self._copy.write(data)
