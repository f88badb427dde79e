// State of the emulated driver: streams with work that waits, events, captures, graphs, modules.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "execute.h"
#include "guards.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace cs_emu {

namespace ptx {
struct Module;
struct Function;
}  // namespace ptx

typedef int CUresult;
typedef uint64_t CUdeviceptr;

enum : int {
  ok = 0,
  invalid_value = 1,
  out_of_memory = 2,
  not_initialized = 3,
  no_device = 100,
  invalid_device = 101,
  invalid_image = 200,
  invalid_context = 201,
  invalid_handle = 400,
  not_found = 500,
  not_ready = 600,
  error_illegal_address = 700,
  launch_out_of_resources = 701,
  error_illegal_instruction = 715,
  error_misaligned = 716,
  error_launch_failed = 719,
  not_supported = 801,
  capture_unsupported = 900,
  capture_invalidated = 901,
  capture_merge = 902,
  capture_unmatched = 903,
  capture_unjoined = 904,
  capture_isolation = 905,
  capture_implicit = 906,
  captured_event = 907,
  capture_wrong_thread = 908,
};

struct Stream;
struct Event;

// What a schedule tells apart: kernels and what runs like them, copies from the host and to it, and marks in the order
// of work (event records, waits), which cost nothing.
enum class Kind { work, upload, download, mark };

// One piece of work. When it runs is a matter of the schedule, within what streams and events allow.
struct Node {
  const char *what;
  std::function<int()> run;
  Event *external = nullptr;  // an event record that is part of a graph
  Kind kind = Kind::work;
  Stream *source = nullptr;   // a wait for an event: it lets pass when source->done >= position
  uint64_t position = 0;
};

// All of these are orders that a device may choose: work of one stream in order, nothing before what it waits for.
//   late            nothing runs before something waits for it
//   early           everything runs as soon as it may
//   kernels_late    the same for kernels; copies run as soon as they may
//   uploads_late    ... all but copies from the host
//   downloads_late  ... all but copies to the host
//   any             whichever stream a seeded draw names, at any call
enum class Schedule { late, early, kernels_late, uploads_late, downloads_late, any };

typedef std::map<Stream *, size_t> Clock;  // per stream: how many of its captured nodes come before

struct Capture {
  std::vector<Node> nodes;  // in the order of the calls, which is one valid order of the graph
  Stream *origin;
  int mode;
  std::thread::id thread;
  bool invalid = false, active = true;
  std::map<Stream *, Clock> streams;
};

struct Stream {
  bool non_blocking = false;
  std::deque<Node> queue;
  uint64_t enqueued = 0, done = 0;
  std::shared_ptr<Capture> capture;
};

struct Event {
  bool timing = true;
  Stream *stream = nullptr;  // where it was recorded last; null: never
  uint64_t position = 0;     // reached when stream->done >= position
  int64_t nanoseconds = 0;
  bool has_time = false;
  std::shared_ptr<Capture> capture;  // recorded last inside a capture
  Clock clock;
};

struct Graph {
  std::vector<Node> nodes;
};

struct Module {
  void *library;
  const Image *image;
  bool loaded;
  std::shared_ptr<ptx::Module> ptx;  // instead of library and image
};

struct Function {
  Module *module = nullptr;
  const Kernel *kernel = nullptr;
  int dynamic_limit = -1;  // of cuFuncSetAttribute; -1: not set
  const ptx::Function *ptx = nullptr;  // kernel is `own` then
  Kernel own{};
  std::vector<unsigned short> sizes;
};

struct State {
  std::recursive_mutex mutex;
  bool initialized = false;
  bool eager = false;  // work runs when it is enqueued: for hosts that read device memory
  Schedule schedule = Schedule::late;
  uint64_t draws = 1;  // state of the draw
  int capability = 87;
  int64_t launches = 0;
  int lost = 0;             // error of work that has run: every later call gives it, until cs_emu_check
  std::string error_text;   // of that failure
  std::map<Stream *, std::unique_ptr<Stream>> streams;
  std::vector<Stream *> racing;  // the same, in the order of their making
  std::map<Event *, std::unique_ptr<Event>> events;
  std::map<Graph *, std::unique_ptr<Graph>> graphs, executables;
  std::map<Module *, std::unique_ptr<Module>> modules;
  std::map<Function *, std::unique_ptr<Function>> functions;
  std::vector<std::shared_ptr<Capture>> captures;  // active ones
  Stream legacy, per_thread;
};

State &state();
int shared_optin();  // bytes of shared memory that a block may have
extern thread_local std::vector<void *> context_stack;

// Serialises a call and checks that the driver is initialised and (unless told otherwise) has a current context that no
// kernel has broken.
struct Enter {
  std::unique_lock<std::recursive_mutex> lock;
  int status;
  explicit Enter(bool needs_context = true);
};
#define ENTER                                   \
  ::cs_emu::Enter enter_;                       \
  if (enter_.status) return enter_.status
// Calls that end something do so in a lost context too: the tests of a process go on after it. They return
// ended(status).
#define ENTER_TO_END                            \
  ::cs_emu::Enter enter_;                       \
  if (enter_.status && enter_.status != ::cs_emu::state().lost) return enter_.status
#define ENTER_WITHOUT_CONTEXT                   \
  ::cs_emu::Enter enter_(false);                \
  if (enter_.status) return enter_.status

// nullptr = the legacy default stream; an unknown handle gives nullptr.
Stream *find_stream(void *handle);
// Puts work into a stream or into its capture. The legacy stream runs it at once, after all blocking streams.
int enqueue(Stream *stream, Node node);
void advance(Stream *stream, uint64_t position);  // runs the stream's work up to there
void drain(bool blocking_only);
inline int ended(int status) { return state().lost ? state().lost : status; }
int unsafe_in_capture();                          // for calls that allocate or wait: 900 and the capture is void
int sync_guard(Stream *stream);                   // the same for waiting on one stream
void invalidate(Capture &capture);
int fail_work(int status, const std::string &text);
int64_t now();

}  // namespace cs_emu
