/* Makes system calls on files below one directory fail, chosen by their number; for LD_PRELOAD.

   Whoever started the process maps the file named by LAZYFS_FAIL_CONTROL as well, reads how many calls of each kind
   there were, and says which numbers of which kind fail with what, or wait. Calls on other files are neither counted nor failed,
   so that Python, FUSE and the network go on. libfiu, the usual tool, fails by chance and knows neither directories nor
   preadv and pwritev. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { PWRITE, PREAD, OPEN, OPEN_TO_WRITE, FALLOCATE, FTRUNCATE, FSYNC, MKDIR, UNLINK, KINDS };

static struct control {
    volatile int64_t kinds, error, first, last; /* of a kind with its bit in `kinds`, calls [first, last] fail */
    volatile int64_t count[KINDS], failed[KINDS];
} *control;

static char below[4096];
static size_t below_length;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LAZYFS_FAIL_CONTROL"), *directory = getenv("LAZYFS_FAIL_BELOW");
    if (!path || !directory) return;
    below_length = strlen(directory);
    if (below_length >= sizeof below) return;
    memcpy(below, directory, below_length + 1);
    REAL(open);
    int fd = real(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED) control = mapped;
}

static int is_below(const char *path) {
    return !strncmp(path, below, below_length) && (path[below_length] == '/' || !path[below_length]);
}

static int is_descriptor_below(int fd) {
    static const char prefix[] = "/proc/self/fd/";
    char name[sizeof prefix + 12], digits[12], target[4096];
    int at = 0;
    if (fd < 0) return 0;
    do digits[at++] = '0' + fd % 10; while (fd /= 10);
    memcpy(name, prefix, sizeof prefix);
    char *end = name + sizeof prefix - 1;
    while (at) *end++ = digits[--at];
    *end = 0;
    ssize_t length = readlink(name, target, sizeof target - 1);
    if (length < 0) return 0;
    target[length] = 0;
    return is_below(target);
}

static int concerns(int fd, const char *path) {
    if (!control) return 0;
    if (path && path[0] == '/') return is_below(path);
    return is_descriptor_below(fd);
}

/* Whether this call is to fail; errno is set. */
static int fails(enum kind kind, int fd, const char *path) {
    int before = errno;
    int concerned = concerns(fd, path);
    errno = before;
    if (!concerned) return 0;
    int64_t number = __atomic_add_fetch(&control->count[kind], 1, __ATOMIC_SEQ_CST);
    if (!(control->kinds >> kind & 1) || number < control->first || number > control->last) return 0;
    __atomic_add_fetch(&control->failed[kind], 1, __ATOMIC_SEQ_CST);
    if (control->error < 0) { /* held, until nothing is to fail */
        while (control->kinds >> kind & 1) usleep(1000);
        return 0;
    }
    errno = (int)control->error;
    return 1;
}

#define CALL(kind, fd, path, name, ...) do { \
        REAL(name); \
        return fails(kind, fd, path) ? -1 : real(__VA_ARGS__); \
    } while (0)

#define OPENING(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT) ? OPEN_TO_WRITE : OPEN)
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags) CALL(OPENING(flags), AT_FDCWD, path, open, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) CALL(OPENING(flags), AT_FDCWD, path, open64, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) {
    MODE(flags) CALL(OPENING(flags), at, path, openat, at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    MODE(flags) CALL(OPENING(flags), at, path, openat64, at, path, flags, mode);
}

#define IO(kind, name, buffer) \
    ssize_t name(int fd, buffer data, size_t size, off_t at) { CALL(kind, fd, NULL, name, fd, data, size, at); }
#define VECTOR(kind, name) \
    ssize_t name(int fd, const struct iovec *data, int n, off_t at) { CALL(kind, fd, NULL, name, fd, data, n, at); }
#define VECTOR2(kind, name) \
    ssize_t name(int fd, const struct iovec *data, int n, off_t at, int flags) { \
        CALL(kind, fd, NULL, name, fd, data, n, at, flags); \
    }

IO(PWRITE, pwrite, const void *)
IO(PWRITE, pwrite64, const void *)
VECTOR(PWRITE, pwritev)
VECTOR(PWRITE, pwritev64)
VECTOR2(PWRITE, pwritev2)
VECTOR2(PWRITE, pwritev64v2)
IO(PREAD, pread, void *)
IO(PREAD, pread64, void *)
VECTOR(PREAD, preadv)
VECTOR(PREAD, preadv64)
VECTOR2(PREAD, preadv2)
VECTOR2(PREAD, preadv64v2)

int fallocate(int fd, int mode, off_t at, off_t size) { CALL(FALLOCATE, fd, NULL, fallocate, fd, mode, at, size); }
int fallocate64(int fd, int mode, off64_t at, off64_t size) {
    CALL(FALLOCATE, fd, NULL, fallocate64, fd, mode, at, size);
}
int ftruncate(int fd, off_t size) { CALL(FTRUNCATE, fd, NULL, ftruncate, fd, size); }
int ftruncate64(int fd, off64_t size) { CALL(FTRUNCATE, fd, NULL, ftruncate64, fd, size); }
int fsync(int fd) { CALL(FSYNC, fd, NULL, fsync, fd); }
int fdatasync(int fd) { CALL(FSYNC, fd, NULL, fdatasync, fd); }
int mkdir(const char *path, mode_t mode) { CALL(MKDIR, AT_FDCWD, path, mkdir, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { CALL(MKDIR, at, path, mkdirat, at, path, mode); }
int unlink(const char *path) { CALL(UNLINK, AT_FDCWD, path, unlink, path); }
int unlinkat(int at, const char *path, int flags) { CALL(UNLINK, at, path, unlinkat, at, path, flags); }
