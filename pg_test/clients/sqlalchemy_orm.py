"""An application on SQLAlchemy's ORM that knows nothing of foreign tables."""

import sys

from sqlalchemy import Integer, Text, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

from conversation import converse

engine = create_engine(
    f"postgresql+psycopg://postgres@127.0.0.1:{sys.argv[1]}/postgres",
    connect_args={"prepare_threshold": None} if "pooled" in sys.argv else {},
)


class Base(DeclarativeBase):
    pass


class Left(Base):
    __tablename__ = "ft1"
    id = mapped_column(Integer, primary_key=True)
    v = mapped_column(Text)


class Right(Base):
    __tablename__ = "ft2"
    id = mapped_column(Integer, primary_key=True)
    v = mapped_column(Text)


def write(id):
    with Session(engine) as session, session.begin():
        session.add_all([Left(id=int(id), v="x"), Right(id=int(id), v="x")])


def write_in_two_phases(id):
    """SQLAlchemy as the transaction manager: it prepares its one connection, then commits it."""
    with Session(engine, twophase=True) as session, session.begin():
        session.add_all([Left(id=int(id), v="x"), Right(id=int(id), v="x")])


def write_unless_there(id, instead):
    """A savepoint that fails, and the transaction that goes on."""
    with Session(engine) as session, session.begin():
        try:
            with session.begin_nested():
                session.add(Left(id=int(id), v="x"))
                session.add(Right(id=int(id), v="x"))
        except IntegrityError:
            session.add_all([Left(id=int(instead), v="x"), Right(id=int(instead), v="x")])


def create(count):
    """Rows whose ids the database draws."""
    with Session(engine) as session, session.begin():
        left = [Left(v=f"row {number}") for number in range(int(count))]
        session.add_all(left)
        session.flush()
        session.add_all([Right(id=row.id, v=row.v) for row in left])
        return [len({row.id for row in left})]


def update(id, v):
    with Session(engine) as session, session.begin():
        session.get(Left, int(id)).v = v
        session.get(Right, int(id), with_for_update=True).v = v


def delete(id):
    with Session(engine) as session, session.begin():
        for model in (Left, Right):
            session.delete(session.get(model, int(id)))


def count_differences():
    """Rows that are not the same in both, read a few at a time."""
    with Session(engine) as session:
        both = [
            {(row.id, row.v) for row in session.scalars(select(model)).yield_per(10)}
            for model in (Left, Right)
        ]
        return [len(both[0] ^ both[1])]


converse({
    "write": write,
    "write_in_two_phases": write_in_two_phases,
    "write_unless_there": write_unless_there,
    "create": create,
    "update": update,
    "delete": delete,
    "count_differences": count_differences,
})
