/* The least that a filesystem over S3 can be: one file, received by plain HTTP with a fixed number of connections into
 * memory that is used again, and read once from its first byte to its last. It keeps, verifies and retries nothing.
 *
 *     bare PORT PATH SIZE CONNECTIONS PART MEMORY NAME [libfuse's arguments]
 *
 * The server is at 127.0.0.1; PATH is what it is asked for, in ranges of PART bytes; SIZE, PART and MEMORY are bytes.
 * What the row `bare` measures with it is what this machine leaves for any daemon, whatever that is written in.
 */

#define FUSE_USE_VERSION 35
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { NODE = 2, PIECE = 1 << 20 };

static int port, connections;
static const char *path, *name;
static off_t size, part, slots;
static char *memory;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static off_t taken;     /* parts that a connection has begun */
static off_t consumed;  /* bytes that the kernel has asked for, and everything before them */
static off_t *received; /* bytes of the part that is in each slot */
static off_t *holds;    /* the number of that part */
static int *answering;  /* reads that are being answered from each slot */

static void die(const char *what)
{
    perror(what);
    _exit(1);
}

/* Reads that the kernel sent ahead come in any order, so a slot is used again two parts later, and not while a read is
 * answered from it: who answers may be held up for longer than others take for two parts. */
static void *receive(void *unused)
{
    (void)unused;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, sock = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(sock, (struct sockaddr *)&address, sizeof address) != 0)
        die("connect");
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (;;) {
        pthread_mutex_lock(&lock);
        while (taken * part < size && (taken >= consumed / part - 2 + slots || answering[taken % slots]))
            pthread_cond_wait(&changed, &lock);
        if (taken * part >= size) {
            pthread_mutex_unlock(&lock);
            return NULL;
        }
        off_t number = taken++, slot = number % slots, start = number * part;
        off_t length = size - start < part ? size - start : part;
        holds[slot] = number;
        received[slot] = 0;
        pthread_mutex_unlock(&lock);

        char text[4096], *body = NULL;
        int wanted = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: bytes=%lld-%lld\r\n\r\n",
                              path, (long long)start, (long long)(start + length - 1));
        if (send(sock, text, wanted, MSG_NOSIGNAL) != wanted)
            die("send");
        ssize_t have = 0;
        while (body == NULL) {
            ssize_t count = recv(sock, text + have, sizeof text - 1 - have, 0);
            if (count <= 0)
                die("recv");
            have += count;
            text[have] = 0;
            body = strstr(text, "\r\n\r\n");
        }
        if (strncmp(text, "HTTP/1.1 206", 12) != 0)
            die(text);
        body += 4;
        off_t got = text + have - body;
        memcpy(memory + slot * part, body, got);
        pthread_mutex_lock(&lock);
        received[slot] = got;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        while (got < length) {
            off_t most = length - got < PIECE ? length - got : PIECE;
            ssize_t count = recv(sock, memory + slot * part + got, most, MSG_WAITALL);
            if (count <= 0)
                die("recv");
            got += count;
            pthread_mutex_lock(&lock);
            received[slot] = got;
            pthread_cond_broadcast(&changed);
            pthread_mutex_unlock(&lock);
        }
    }
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *wanted)
{
    struct fuse_entry_param entry = {.ino = NODE, .attr_timeout = 3600, .entry_timeout = 3600};
    if (parent != FUSE_ROOT_ID || strcmp(wanted, name) != 0) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    entry.attr = (struct stat){.st_ino = NODE, .st_mode = S_IFREG | 0444, .st_nlink = 1, .st_size = size};
    fuse_reply_entry(request, &entry);
}

static void on_getattr(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *unused)
{
    (void)unused;
    struct stat file = {.st_ino = NODE, .st_mode = S_IFREG | 0444, .st_nlink = 1, .st_size = size};
    struct stat root = {.st_ino = 1, .st_mode = S_IFDIR | 0555, .st_nlink = 2};
    fuse_reply_attr(request, node == NODE ? &file : &root, 3600);
}

/* The connections start here, as a mount asks for nothing before somebody reads. */
static void on_open(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *file)
{
    (void)node;
    for (int index = 0; index < connections; index++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, receive, NULL) != 0)
            die("pthread_create");
    }
    file->keep_cache = 1;
    fuse_reply_open(request, file);
}

static void on_read(fuse_req_t request, fuse_ino_t node, size_t length, off_t offset, struct fuse_file_info *unused)
{
    (void)node, (void)unused;
    struct iovec pieces[8];
    off_t from[8];
    int count = 0;
    if (offset + (off_t)length > size)
        length = offset < size ? size - offset : 0;
    off_t end = offset + length;
    pthread_mutex_lock(&lock);
    for (off_t at = offset; at < end; count++) {
        off_t number = at / part, slot = number % slots, start = at % part;
        off_t stop = end - number * part < part ? end - number * part : part;
        if (number + slots <= taken)
            die("read twice, which this cannot");
        while (holds[slot] != number || received[slot] < stop)
            pthread_cond_wait(&changed, &lock);
        from[count] = slot;
        answering[slot]++;
        pieces[count] = (struct iovec){memory + slot * part + start, stop - start};
        at += stop - start;
    }
    pthread_mutex_unlock(&lock);
    fuse_reply_iov(request, pieces, count);
    pthread_mutex_lock(&lock);
    while (count-- > 0)
        answering[from[count]]--;
    if (consumed < offset)
        consumed = offset;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

int main(int argc, char **argv)
{
    if (argc < 8)
        return 2;
    port = atoi(argv[1]);
    path = argv[2];
    size = atoll(argv[3]);
    connections = atoi(argv[4]);
    part = atoll(argv[5]);
    slots = atoll(argv[6]) / part;
    name = argv[7];
    holds = calloc(slots, sizeof *holds);
    received = calloc(slots, sizeof *received);
    answering = calloc(slots, sizeof *answering);
    memset(holds, 0xff, slots * sizeof *holds);
    memory = mmap(NULL, slots * part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    madvise(memory, slots * part, MADV_HUGEPAGE);
    memset(memory, 1, slots * part);

    argv[7] = argv[0];
    struct fuse_args arguments = FUSE_ARGS_INIT(argc - 7, argv + 7);
    struct fuse_cmdline_opts options;
    const struct fuse_lowlevel_ops operations = {
        .lookup = on_lookup, .getattr = on_getattr, .open = on_open, .read = on_read};
    if (fuse_parse_cmdline(&arguments, &options) != 0 || options.mountpoint == NULL)
        return 2;
    struct fuse_session *session = fuse_session_new(&arguments, &operations, sizeof operations, NULL);
    if (session == NULL || fuse_set_signal_handlers(session) != 0 || fuse_session_mount(session, options.mountpoint) != 0)
        return 1;
    struct fuse_loop_config config = {.clone_fd = 0, .max_idle_threads = 4};
    int failed = fuse_session_loop_mt(session, &config);
    fuse_session_unmount(session);
    return failed != 0;
}
