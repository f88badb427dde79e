// Turns a crash of emulated work into an answer.
#pragma once
#include <csignal>

namespace cs_emu {

struct Fault {
  int signal;  // 0 = none
  void *address;
};

// Runs body; when it (on any stack of this thread) hits SIGSEGV, SIGBUS or SIGFPE, it is abandoned where it is. Not
// reentrant.
Fault run_guarded(void (*body)());

}  // namespace cs_emu
