"""An application on Django's ORM that knows nothing of foreign tables."""

import sys

import django
from django.conf import settings

from conversation import converse

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": "127.0.0.1",
            "PORT": sys.argv[1],
            "NAME": "postgres",
            "USER": "postgres",
        }
    },
    USE_TZ=True,
)
django.setup()

from django.db import IntegrityError, models, transaction  # noqa: E402, after the settings


class Left(models.Model):
    id = models.AutoField(primary_key=True)
    v = models.TextField()

    class Meta:
        app_label = "application"
        db_table = "ft1"
        managed = False


class Right(models.Model):
    id = models.AutoField(primary_key=True)
    v = models.TextField()

    class Meta:
        app_label = "application"
        db_table = "ft2"
        managed = False


@transaction.atomic
def write(id):
    for model in (Left, Right):
        model.objects.create(id=int(id), v="x")


@transaction.atomic
def write_unless_there(id, instead):
    """A savepoint that fails, and the transaction that goes on."""
    try:
        with transaction.atomic():
            write(id)
    except IntegrityError:
        write(instead)


@transaction.atomic
def create(count):
    """Rows whose ids the database draws."""
    left = Left.objects.bulk_create(Left(v=f"row {number}") for number in range(int(count)))
    Right.objects.bulk_create(Right(id=row.id, v=row.v) for row in left)
    return [len({row.id for row in left})]


@transaction.atomic
def update(id, v):
    row = Left.objects.get(id=int(id))
    row.v = v
    row.save()
    row = Right.objects.select_for_update().get(id=int(id))
    row.v = v
    row.save()


@transaction.atomic
def delete(id):
    for model in (Left, Right):
        model.objects.get(id=int(id)).delete()


def count_differences():
    """Rows that are not the same in both, read a few at a time, by a cursor of the server."""
    both = [
        {(row.id, row.v) for row in model.objects.iterator(chunk_size=10)}
        for model in (Left, Right)
    ]
    return [len(both[0] ^ both[1])]


converse({
    "write": write,
    "write_unless_there": write_unless_there,
    "create": create,
    "update": update,
    "delete": delete,
    "count_differences": count_differences,
})
