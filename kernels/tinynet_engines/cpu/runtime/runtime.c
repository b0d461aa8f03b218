// The run-time library, built once per machine: it runs a kernel's programs on a thread pool and provides the services.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "groups.h"

// ------------------------------------------------------------------------------------------------------------ arena

// One growing block of memory per thread, for the tiles of any kernel that runs there; freed with the thread.
static __thread struct { char *memory; int64_t bytes; } arena;
static pthread_key_t arena_key;
static pthread_once_t arena_once = PTHREAD_ONCE_INIT;

static void create_arena_key(void) { pthread_key_create(&arena_key, free); }

static char *thread_arena(int64_t bytes) {
  if (arena.memory && bytes <= arena.bytes) return arena.memory;
  pthread_once(&arena_once, create_arena_key);
  free(arena.memory);
  arena.bytes = 0;
  arena.memory = NULL;
  bytes = ((bytes | 1) + 65535) & ~(int64_t)65535;
  void *memory = NULL;
  if (posix_memalign(&memory, 4096, (size_t)bytes) != 0) memory = NULL;
  pthread_setspecific(arena_key, memory);
  arena.memory = memory;
  arena.bytes = memory ? bytes : 0;
  return memory;
}

// --------------------------------------------------------------------------------------------------------- services

static pthread_mutex_t print_lock = PTHREAD_MUTEX_INITIALIZER;

enum print_kind { PRINT_FLOAT, PRINT_SIGNED, PRINT_UNSIGNED, PRINT_HEX };

static void print_value(const struct program *program, const char *prefix, const int64_t *index, int rank, int kind,
                        double value, int64_t integer) {
  pthread_mutex_lock(&print_lock);
  printf("pid (%d, %d, %d) idx (", program->id[0], program->id[1], program->id[2]);
  for (int i = 0; i < rank; i++) printf(i ? ", %lld" : "%lld", (long long)index[i]);
  printf(")%s", prefix);
  if (kind == PRINT_FLOAT) printf("%f\n", value);
  else if (kind == PRINT_SIGNED) printf("%lld\n", (long long)integer);
  else if (kind == PRINT_UNSIGNED) printf("%llu\n", (unsigned long long)integer);
  else printf("0x%llx\n", (unsigned long long)integer);
  fflush(stdout);
  pthread_mutex_unlock(&print_lock);
}

static void fail(const struct program *program, const char *message) {
  __atomic_store_n(program->failure, message, __ATOMIC_RELAXED);
}

static const struct services services = {dot, dot_groups, reduce_groups, enqueue, enqueue_groups, finish, finish_into, pack_b_for_later, print_value, fail};

// ----------------------------------------------------------------------------------------------------------- launch

// Programs in order that one thread runs; other threads help when they have run theirs.
struct share {
  int64_t next __attribute__((aligned(64)));
  int64_t end;
};

enum { MOST_SHARES = 64 };

struct work {
  const struct launch *launch;
  const char *failure;
  int64_t chunk, count;  // of programs that are taken at once, and of shares
  struct share shares[MOST_SHARES];
};

// A thread's number among those that run a launch, from OpenMP. So each thread has the same share of every grid: what it
// reads is often in its core's cache, because it has written that part of the tensor in the launch before.
static int (*thread_number)(void);

void tinynet_set_thread_number(int (*function)(void)) { thread_number = function; }

static const char out_of_memory[] = "out of memory for a kernel's tiles";

// Runs the programs `first` to `end`; returns whether none has failed.
static int run_programs(const struct launch *launch, struct program *program, int64_t first, int64_t end) {
  int64_t x = first % launch->grid[0], yz = first / launch->grid[0];
  int64_t y = yz % launch->grid[1], z = yz / launch->grid[1];
  for (int64_t i = first; i < end; i++) {
    program->id[0] = (int32_t)x, program->id[1] = (int32_t)y, program->id[2] = (int32_t)z;
    launch->kernel(program);
    if (__atomic_load_n(program->failure, __ATOMIC_RELAXED)) return 0;
    if (++x == launch->grid[0]) {
      x = 0;
      if (++y == launch->grid[1]) y = 0, z++;
    }
  }
  return 1;
}

static void worker(void *data) {
  struct work *work = data;
  const struct launch *launch = work->launch;
  struct program program = {
      .count = {(int32_t)launch->grid[0], (int32_t)launch->grid[1], (int32_t)launch->grid[2]},
      .arguments = launch->arguments,
      .arena = thread_arena(launch->arena_bytes),
      .services = &services,
      .failure = &work->failure,
  };
  if (!program.arena) {
    fail(&program, out_of_memory);
    return;
  }
  // Threads begin at different shares, the first of them at the first: so a program may wait for one with a lower number.
  for (int64_t n = 0, own = thread_number ? thread_number() : 0; n < work->count; n++) {
    struct share *share = &work->shares[(own + n) % work->count];
    for (;;) {
      int64_t first = __atomic_fetch_add(&share->next, work->chunk, __ATOMIC_RELAXED);
      if (first >= share->end) break;
      if (!run_programs(launch, &program, first, least(first + work->chunk, share->end))) return;
    }
  }
}

// Run every program of the grid. Returns NULL, or an error message.
const char *tinynet_launch(const struct launch *launch) {
  int64_t total;
  for (int i = 0; i < 3; i++)
    if (launch->grid[i] <= 0) return NULL;
  if (__builtin_mul_overflow(launch->grid[0], launch->grid[1], &total) ||
      __builtin_mul_overflow(total, launch->grid[2], &total))
    return "the grid has more than 2^63 programs";
  int64_t threads = launch->parallel && launch->threads > 1 ? least(launch->threads, total) : 1;
  struct work work;  // not initialized here: most of it stays unused
  work.launch = launch;
  work.failure = NULL;
  work.count = least(threads, MOST_SHARES);
  work.chunk = threads == 1 ? total : least(total / (threads * 8), 64);
  if (work.chunk < 1) work.chunk = 1;
  int64_t start = 0;
  for (int64_t n = 0; n < work.count; n++) {
    work.shares[n].next = start;
    start += total / work.count + (n < total % work.count);
    work.shares[n].end = start;
  }
  if (threads == 1) worker(&work);
  else launch->parallel(worker, &work, (unsigned)threads, 0);
  return work.failure;
}

const char tinynet_overlap[] = "overlap";

// As tinynet_launch, for a kernel that assumes disjoint arguments: returns tinynet_overlap if they overlap.
const char *tinynet_launch_checked(const struct launch *launch, const struct disjoint_pair *pairs, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const char *written = launch->arguments[pairs[i].written].pointer, *other = launch->arguments[pairs[i].other].pointer;
    if (written < other + pairs[i].other_bytes && other < written + pairs[i].written_bytes) return tinynet_overlap;
  }
  return tinynet_launch(launch);
}

// Runs launches one after another, on so many threads each. Returns NULL, or the first error message.
const char *tinynet_replay(struct launch *const *launches, int64_t count,
                           void (*parallel)(void (*)(void *), void *, unsigned, unsigned), int64_t threads) {
  for (int64_t i = 0; i < count; i++) {
    launches[i]->parallel = parallel;
    launches[i]->threads = threads;
    const char *failure = tinynet_launch(launches[i]);
    if (failure) return failure;
  }
  return NULL;
}

// A step of a program: a launch, or a stop, where the caller has something to do.
struct step {
  int64_t start;                // of the launch's block among the program's bytes; negative for a stop
  int64_t base, offset, bytes;  // of a stop: numbers, and it is none if all their bytes are zero. Negative: without any
};

// Where a launch has an address: in the memory with this number, so many bytes behind its beginning.
struct relocation { int64_t position, base, offset; };

// Launches whose memory lies elsewhere in each run.
struct relocatable {
  const char *blocks;  // of all launches, one behind the other
  int64_t bytes;
  const struct step *steps;
  int64_t step_count;
  const struct relocation *relocations;  // `position` is among the bytes of `blocks`
  int64_t relocation_count;
};

static int any_byte(const char *bytes, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (bytes[i]) return 1;
  return 0;
}

// Runs a program from the step `*next` on, its memory beginning at the addresses `bases`. Returns NULL, or the first error
// message. `*next` becomes the step at which it stopped, or the number of steps.
const char *tinynet_run(const struct relocatable *program, char *const *bases, int64_t *next,
                        void (*parallel)(void (*)(void *), void *, unsigned, unsigned), int64_t threads) {
  void *memory = NULL;
  if (posix_memalign(&memory, 64, (size_t)program->bytes + 1) != 0) return out_of_memory;
  char *blocks = memory;
  memcpy(blocks, program->blocks, (size_t)program->bytes);
  for (int64_t i = 0; i < program->relocation_count; i++) {
    const struct relocation *each = &program->relocations[i];
    *(char **)(blocks + each->position) = bases[each->base] + each->offset;
  }
  const char *failure = NULL;
  for (; *next < program->step_count && !failure; ++*next) {
    const struct step *step = &program->steps[*next];
    if (step->start < 0) {
      if (step->bytes < 0 || any_byte(bases[step->base] + step->offset, step->bytes)) break;
      continue;
    }
    struct launch *launch = (struct launch *)(blocks + step->start);
    launch->parallel = parallel;
    launch->threads = threads;
    failure = tinynet_launch(launch);
  }
  free(memory);
  return failure;
}
