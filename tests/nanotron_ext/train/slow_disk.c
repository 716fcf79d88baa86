/* A disk whose flushes take long, for tests, from outside the program:
 *
 *   cc -shared -fPIC -o slow_disk.so slow_disk.c -ldl
 *   SLOW_FLUSH_PATH=checkpoints SLOW_FLUSH_SECONDS=45 LD_PRELOAD=$PWD/slow_disk.so COMMAND
 *
 * fsync of a file or folder whose path contains SLOW_FLUSH_PATH takes SLOW_FLUSH_SECONDS longer.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int fsync(int descriptor) {
    const char *part = getenv("SLOW_FLUSH_PATH"), *seconds = getenv("SLOW_FLUSH_SECONDS");
    char link[32], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (part && seconds && length > 0) {
        path[length] = '\0';
        if (strstr(path, part))
            sleep(atoi(seconds));
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(descriptor);
}
