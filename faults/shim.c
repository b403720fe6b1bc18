/* Counts what a process does with files under one folder, or its large allocations, and brings a fault at the n-th.
 *
 * Loaded with LD_PRELOAD; asleep until `faults_arm` is called in the process. Reaches every library: Python, HDF5,
 * Arrow, safetensors. What is mapped into memory is not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, CREATE = 2, WRITE = 4, SYNC = 8, RENAME = 16, MKDIR = 32, UNLINK = 64, READ = 128, ALLOCATE = 256 };

static char prefix[4096];
static size_t prefix_length, smallest;
static int mask, error, signal_number;
static long first, seen, of_kind[16];

void faults_arm(const char *folder, int operations, long nth, int number, int of_signal, size_t least) {
    strncpy(prefix, folder, sizeof prefix - 1);
    prefix_length = strlen(prefix);
    error = number, signal_number = of_signal, smallest = least, first = nth, seen = 0;
    memset(of_kind, 0, sizeof of_kind);
    __sync_synchronize();
    mask = operations;
}
void faults_disarm(void) { mask = 0; }
long faults_seen(int kind) { return of_kind[kind]; }

static int inside(int folder, const char *path) {
    char whole[8192];
    if (path && path[0] == '/') return strncmp(path, prefix, prefix_length) == 0;
    char link[64];
    if (folder == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, whole, sizeof whole - 1);
    if (length < 0) return 0;
    whole[length] = 0;
    return strncmp(whole, prefix, prefix_length) == 0;
}

/* 0: go on; 1: fail with errno set; 2: a signal that is to come in the middle of the operation. */
static int fault(int operation, int folder, const char *path) {
    if (!(mask & operation) || !inside(folder, path)) return 0;
    __sync_add_and_fetch(&of_kind[__builtin_ctz(operation)], 1);
    long n = __sync_add_and_fetch(&seen, 1);
    if (signal_number) return n == first ? 2 : 0;
    if (!error || n < first) return 0;
    errno = error;
    return 1;
}
static void strike(void) { kill(getpid(), signal_number); }

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define BEFORE(operation, folder, path) \
    switch (fault(operation, folder, path)) { case 1: return -1; case 2: strike(); }

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        REAL(int, name, const char *, int, ...); \
        BEFORE(flags & O_CREAT ? CREATE : OPEN, AT_FDCWD, path) \
        return real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)
#define OPENS_AT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        REAL(int, name, int, const char *, int, ...); \
        BEFORE(flags & O_CREAT ? CREATE : OPEN, folder, path) \
        return real(folder, path, flags, mode); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

/* Of a write during which the signal comes, half gets to the file. */
ssize_t write(int file, const void *bytes, size_t n) {
    REAL(ssize_t, write, int, const void *, size_t);
    switch (fault(WRITE, file, NULL)) {
    case 1: return -1;
    case 2:
        if (n > 1) { ssize_t half = real(file, bytes, n / 2); strike(); return half; }
        strike();
    }
    return real(file, bytes, n);
}
#define PWRITES(name, offset) \
    ssize_t name(int file, const void *bytes, size_t n, offset at) { \
        REAL(ssize_t, name, int, const void *, size_t, offset); \
        switch (fault(WRITE, file, NULL)) { \
        case 1: return -1; \
        case 2: \
            if (n > 1) { ssize_t half = real(file, bytes, n / 2, at); strike(); return half; } \
            strike(); \
        } \
        return real(file, bytes, n, at); \
    }
PWRITES(pwrite, off_t)
PWRITES(pwrite64, off64_t)
ssize_t read(int file, void *bytes, size_t n) {
    REAL(ssize_t, read, int, void *, size_t);
    BEFORE(READ, file, NULL)
    return real(file, bytes, n);
}
#define PREADS(name, offset) \
    ssize_t name(int file, void *bytes, size_t n, offset at) { \
        REAL(ssize_t, name, int, void *, size_t, offset); \
        BEFORE(READ, file, NULL) \
        return real(file, bytes, n, at); \
    }
PREADS(pread, off_t)
PREADS(pread64, off64_t)

#define OF_FILE(name, operation) \
    int name(int file) { \
        REAL(int, name, int); \
        BEFORE(operation, file, NULL) \
        return real(file); \
    }
OF_FILE(fsync, SYNC)
OF_FILE(fdatasync, SYNC)
#define OF_LENGTH(name, offset) \
    int name(int file, offset length) { \
        REAL(int, name, int, offset); \
        BEFORE(WRITE, file, NULL) \
        return real(file, length); \
    }
OF_LENGTH(ftruncate, off_t)
OF_LENGTH(ftruncate64, off64_t)
#define FALLOCATES(name, offset) \
    int name(int file, offset start, offset length) { \
        REAL(int, name, int, offset, offset); \
        switch (fault(WRITE, file, NULL)) { case 1: return errno; case 2: strike(); } \
        return real(file, start, length); \
    }
FALLOCATES(posix_fallocate, off_t)
FALLOCATES(posix_fallocate64, off64_t)

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    BEFORE(RENAME, AT_FDCWD, to)
    return real(from, to);
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    BEFORE(RENAME, to_folder, to)
    return real(from_folder, from, to_folder, to, flags);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    BEFORE(MKDIR, AT_FDCWD, path)
    return real(path, mode);
}
int unlink(const char *path) {
    REAL(int, unlink, const char *);
    BEFORE(UNLINK, AT_FDCWD, path)
    return real(path);
}
int unlinkat(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    BEFORE(UNLINK, folder, path)
    return real(folder, path, flags);
}
int rmdir(const char *path) {
    REAL(int, rmdir, const char *);
    BEFORE(UNLINK, AT_FDCWD, path)
    return real(path);
}

/* Large allocations: from the n-th on there is no memory for one. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
static int refused(size_t size) {
    if (!(mask & ALLOCATE) || size < smallest) return 0;
    __sync_add_and_fetch(&of_kind[__builtin_ctz(ALLOCATE)], 1);
    long n = __sync_add_and_fetch(&seen, 1);
    if (!error || n < first) return 0;
    errno = ENOMEM;
    return 1;
}
void *malloc(size_t size) { return refused(size) ? NULL : __libc_malloc(size); }
void *calloc(size_t n, size_t size) { return refused(n * size) ? NULL : __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { return refused(size) ? NULL : __libc_realloc(old, size); }
void *memalign(size_t to, size_t size) { return refused(size) ? NULL : __libc_memalign(to, size); }
void *aligned_alloc(size_t to, size_t size) { return refused(size) ? NULL : __libc_memalign(to, size); }
int posix_memalign(void **place, size_t to, size_t size) {
    if (refused(size)) return ENOMEM;
    *place = __libc_memalign(to, size);
    return *place ? 0 : ENOMEM;
}
