// Signal handlers around emulated kernels.
#include "fault.h"

#include <pthread.h>
#include <setjmp.h>

#include <vector>

namespace cs_emu {
namespace {

constexpr int signals[3] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction previous[3];
sigjmp_buf escape;
volatile sig_atomic_t escaping;
pthread_t runner;
Fault fault;

void on_fault(int signal, siginfo_t *info, void *) {
  if (escaping && pthread_equal(pthread_self(), runner)) {
    fault = {signal, info->si_addr};
    siglongjmp(escape, 1);
  }
  for (int i = 0; i < 3; ++i)  // somebody else's fault: it happens again, with the handler of before
    if (signals[i] == signal) sigaction(signal, &previous[i], nullptr);
}

}  // namespace

Fault run_guarded(void (*body)()) {
  // The handler needs a stack of its own: that of a fiber may be full.
  static std::vector<unsigned char> signal_stack(64 * 1024);
  stack_t alternate{}, old_alternate{};
  alternate.ss_sp = signal_stack.data();
  alternate.ss_size = signal_stack.size();
  sigaltstack(&alternate, &old_alternate);
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < 3; ++i) sigaction(signals[i], &action, &previous[i]);
  runner = pthread_self();
  fault = {0, nullptr};
  if (sigsetjmp(escape, 1) == 0) {
    escaping = 1;
    body();
  }
  escaping = 0;
  for (int i = 0; i < 3; ++i) sigaction(signals[i], &previous[i], nullptr);
  sigaltstack(&old_alternate, nullptr);
  return fault;
}

}  // namespace cs_emu
