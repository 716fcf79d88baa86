/* A disk whose flushes and writes take long, for tests, from outside the program:
 *
 *   cc -shared -fPIC -o slow_disk.so slow_disk.c -ldl
 *   SLOW_PATH=checkpoints SLOW_FLUSH_SECONDS=45 SLOW_WRITE_SECONDS=1 LD_PRELOAD=$PWD/slow_disk.so COMMAND
 *
 * fsync of a file or folder whose path contains SLOW_PATH takes SLOW_FLUSH_SECONDS longer, and a write to it of at least
 * 1,024 bytes SLOW_WRITE_SECONDS.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wait_for_disk(int descriptor, const char *variable) {
    const char *part = getenv("SLOW_PATH"), *seconds = getenv(variable);
    char link[32], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (part && seconds && length > 0) {
        path[length] = '\0';
        if (strstr(path, part))
            sleep(atoi(seconds));
    }
}

int fsync(int descriptor) {
    wait_for_disk(descriptor, "SLOW_FLUSH_SECONDS");
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(descriptor);
}

ssize_t write(int descriptor, const void *data, size_t bytes) {
    if (bytes >= 1024)
        wait_for_disk(descriptor, "SLOW_WRITE_SECONDS");
    return ((ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(descriptor, data, bytes);
}
