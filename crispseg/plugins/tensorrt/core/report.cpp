#include "report.h"

#include <atomic>
#include <cstdio>

namespace crispseg {
namespace plugin {
namespace {

std::atomic<void (*)(char const *)> sink{nullptr};
thread_local char last[1024] = "";

}  // namespace

void set_sink(void (*function)(char const *)) { sink = function; }

bool report(std::string const &message) noexcept {
  std::snprintf(last, sizeof last, "crispseg: %s", message.c_str());
  auto const function = sink.load();
  if (function) {
    function(last);
  } else {
    std::fprintf(stderr, "%s\n", last);
  }
  return false;
}

char const *last_report() noexcept { return last; }

}  // namespace plugin
}  // namespace crispseg
