/* A wall clock that is wrong, for programs that are started with this as LD_PRELOAD: it adds the number of nanoseconds
 * that the file CLOCK_SHIFT_FILE holds, as it is at each call. The clocks that only measure (CLOCK_MONOTONIC), the times
 * of files and those that other machines write are right. Semaphores are told the time as the kernel knows it, since
 * Python's locks before 3.11 wait by the wall clock; other waits until a time of the wall clock are not corrected. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BILLION 1000000000L

static volatile const int64_t *shift;
static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_timedwait)(sem_t *, const struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_SHIFT_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file >= 0 ? mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
    if (mapped == MAP_FAILED) abort();
    close(file);
    real_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    real_timedwait = (int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait");
    shift = mapped;
}

static struct timespec moved(struct timespec from, int64_t by) {
    int64_t seconds = by / BILLION, rest = from.tv_nsec + by % BILLION;
    if (rest < 0) { rest += BILLION; seconds--; }
    if (rest >= BILLION) { rest -= BILLION; seconds++; }
    return (struct timespec){from.tv_sec + seconds, rest};
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!shift) begin();
    int result = real_gettime(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) *now = moved(*now, *shift);
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    if (result == 0) *now = (struct timeval){exact.tv_sec, exact.tv_nsec / 1000};
    return result;
}

time_t time(time_t *now) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return -1;
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    if (!shift) begin();
    struct timespec right = moved(*until, -*shift);
    return real_timedwait(semaphore, &right);
}
