"""Object files and the index compared, after a stop of the machine: what the index does not know goes.

Must not know why it is asked, nor dig what it buries.
"""

from collections import Counter

from lazyfs.cache.index import Index
from lazyfs.cache.objectfile import ObjectFiles
from lazyfs.cache.records import OBJECT, WHOLE_FILE, Run, parts_in, sound
from lazyfs.objects import CHUNK_SIZE

FILE_OVERHEAD = 64 * 1024
"""What an object file may take beyond its chunks: the filesystem's list of its extents, a page for 340 of them on ext4,
so all that a file of 5 GiB can have."""


def sweep(index: Index, files: ObjectFiles) -> None:
    """Remove files that the index does not know, and forget those that hold more than it knows.

    Every file is made after its record, so one found before the records were read, and not in them, has none.
    """
    found = files.found()
    known = entries(index)
    for (object_id, generation), size in found.items():
        if (object_id, generation) not in known:
            files.clear(Run(object_id, generation, 0, WHOLE_FILE))
        elif size > known[object_id, generation] + FILE_OVERHEAD:
            index.bury_object(object_id)


def entries(index: Index) -> dict[tuple[bytes, int], int]:
    """Every (object_id, generation) the index knows, with the disk bytes of its chunks, and of those that are here in
    part, if all of these are of full size. Looks at all of it."""
    parts: Counter[bytes] = Counter()
    with index.look() as (txn, tables):
        with txn.cursor(tables.objects) as cursor:
            heads = {bytes(key): OBJECT.unpack_from(value) for key, value in cursor}
        with txn.cursor(tables.segments) as cursor:
            for key, value in cursor:
                parts[bytes(key[:16])] += parts_in(value).bit_count() if sound(bytes(key), value) else 0
    return {
        (object_id, generation): (present + parts[object_id]) * CHUNK_SIZE
        for object_id, (generation, _, present) in heads.items()
    }
