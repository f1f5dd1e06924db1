"""Object files and the index compared, after a stop of the machine: what the index does not know goes.

Must not know why it is asked, nor dig what it buries.
"""

from lazyfs.cache.index import Index
from lazyfs.cache.objectfile import ObjectFiles
from lazyfs.cache.records import WHOLE_FILE, Run

FILE_OVERHEAD = 64 * 1024
"""What an object file may take beyond its chunks: the filesystem's list of its extents, a page for 340 of them on ext4,
so all that a file of 5 GiB can have."""


def sweep(index: Index, files: ObjectFiles) -> None:
    """Remove files that the index does not know, and forget those that hold more than it knows.

    Every file is made after its record, so one found before the records were read, and not in them, has none.
    """
    found = files.found()
    known = index.entries()
    for (object_id, generation), size in found.items():
        if (object_id, generation) not in known:
            files.clear(Run(object_id, generation, 0, WHOLE_FILE))
        elif size > known[object_id, generation] + FILE_OVERHEAD:
            index.bury_object(object_id)
