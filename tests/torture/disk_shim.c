/* Makes the k-th change to files below a folder fail: preloaded into a process, it stands before the C library.

   Python's writes and SQLite's go through the same functions, so both are met. How many changes there were, which of
   them fails and how is in a small file that all processes map and share.

   cc -shared -fPIC -O2 -o shim.so disk_shim.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    int64_t num_changes; /* so far */
    int64_t fail_at;     /* 0: none, just count */
    int64_t error;       /* errno */
    int64_t stays;       /* 1: every later change fails too */
    int64_t num_failed;  /* so far */
    int64_t of_process;  /* whose changes count; 0: everybody's */
    char below[4096];    /* the folder */
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("TORTURE_DISK");
    int file = name ? open(name, O_RDWR) : -1;
    if (file < 0) return;
    void *found = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED) control = found;
}

static int is_below(const char *path) {
    size_t length = strlen(control->below);
    return length && !strncmp(path, control->below, length);
}

static int fails(void) {
    if (control->of_process && control->of_process != getpid()) return 0;
    int64_t number = __sync_add_and_fetch(&control->num_changes, 1);
    if (!control->fail_at || number < control->fail_at || (number > control->fail_at && !control->stays)) return 0;
    __sync_add_and_fetch(&control->num_failed, 1);
    errno = (int)control->error;
    return 1;
}

static int fails_path(int folder, const char *path) {
    char whole[8192], link[64];
    if (!control || !path) return 0;
    if (path[0] == '/') return is_below(path) && fails();
    if (folder == AT_FDCWD) {
        if (!getcwd(whole, 4096)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, whole, 4095);
        if (n < 0) return 0;
        whole[n] = 0;
    }
    strncat(whole, "/", 2);
    strncat(whole, path, 4000);
    return is_below(whole) && fails();
}

static int fails_file(int file) {
    char link[64], path[4096];
    if (!control) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_below(path) && fails();
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* A full disk takes what still fits before it says so. */
static int takes_half(size_t size) { return control->error == ENOSPC && control->stays && size > 1; }

ssize_t write(int file, const void *bytes, size_t size) {
    if (fails_file(file)) return takes_half(size) ? NEXT(write)(file, bytes, size / 2) : -1;
    return NEXT(write)(file, bytes, size);
}
ssize_t pwrite(int file, const void *bytes, size_t size, off_t at) {
    if (fails_file(file)) return takes_half(size) ? NEXT(pwrite)(file, bytes, size / 2, at) : -1;
    return NEXT(pwrite)(file, bytes, size, at);
}
ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t at) {
    if (fails_file(file)) return takes_half(size) ? NEXT(pwrite64)(file, bytes, size / 2, at) : -1;
    return NEXT(pwrite64)(file, bytes, size, at);
}
ssize_t writev(int file, const struct iovec *parts, int num_parts) {
    return fails_file(file) ? -1 : NEXT(writev)(file, parts, num_parts);
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    return fails_file(to) ? -1 : NEXT(sendfile)(to, from, at, size);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    return fails_file(to) ? -1 : NEXT(sendfile64)(to, from, at, size);
}
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned flags) {
    return fails_file(to) ? -1 : NEXT(copy_file_range)(from, from_at, to, to_at, size, flags);
}
int fsync(int file) { return fails_file(file) ? -1 : NEXT(fsync)(file); }
int fdatasync(int file) { return fails_file(file) ? -1 : NEXT(fdatasync)(file); }
int ftruncate(int file, off_t size) { return fails_file(file) ? -1 : NEXT(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { return fails_file(file) ? -1 : NEXT(ftruncate64)(file, size); }
int rename(const char *from, const char *to) {
    return fails_path(AT_FDCWD, to) ? -1 : NEXT(rename)(from, to);
}
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    return fails_path(to_folder, to) ? -1 : NEXT(renameat)(from_folder, from, to_folder, to);
}
int mkdir(const char *path, mode_t mode) { return fails_path(AT_FDCWD, path) ? -1 : NEXT(mkdir)(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) {
    return fails_path(folder, path) ? -1 : NEXT(mkdirat)(folder, path, mode);
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & O_CREAT) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) {
    MODE(flags)
    return (flags & O_CREAT) && fails_path(AT_FDCWD, path) ? -1 : NEXT(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags)
    return (flags & O_CREAT) && fails_path(AT_FDCWD, path) ? -1 : NEXT(open64)(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return (flags & O_CREAT) && fails_path(folder, path) ? -1 : NEXT(openat)(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return (flags & O_CREAT) && fails_path(folder, path) ? -1 : NEXT(openat64)(folder, path, flags, mode);
}
