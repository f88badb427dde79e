// Switching between stacks inside one thread. The kernel is not asked: tens of thousands of switches a millisecond.
#pragma once
#include <cstddef>
#include <cstdint>

#if !defined(CS_EMU_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define CS_EMU_UCONTEXT 1
#endif

#if defined(CS_EMU_UCONTEXT)
#include <ucontext.h>

// Portable, with a system call a switch. A suspended context lies on its own stack.
inline void cs_emu_switch(void **save, void *load) {
  ucontext_t self;
  *save = &self;
  swapcontext(&self, static_cast<ucontext_t *>(load));
}
inline void *fiber_prepare(unsigned char *stack, size_t bytes, void (*entry)()) {
  ucontext_t *context = reinterpret_cast<ucontext_t *>(stack + (bytes - sizeof(ucontext_t)) / 64 * 64);
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = static_cast<size_t>(reinterpret_cast<unsigned char *>(context) - stack);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}
#else
// Saves the registers that a called function must keep, and the stack pointer in *save; continues at load.
extern "C" void cs_emu_switch(void **save, void *load);

#if defined(__x86_64__)
asm(R"(
.text
.globl cs_emu_switch
.hidden cs_emu_switch
.type cs_emu_switch,@function
cs_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cs_emu_switch,.-cs_emu_switch
)");
inline void *fiber_prepare(unsigned char *stack, size_t bytes, void (*entry)()) {
  void **top = reinterpret_cast<void **>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15));
  *--top = nullptr;  // where entry would return to; also aligns the stack as a call does
  *--top = reinterpret_cast<void *>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}
#else
asm(R"(
.text
.globl cs_emu_switch
.hidden cs_emu_switch
.type cs_emu_switch,%function
cs_emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cs_emu_switch,.-cs_emu_switch
)");
inline void *fiber_prepare(unsigned char *stack, size_t bytes, void (*entry)()) {
  const uintptr_t top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15);
  void **frame = reinterpret_cast<void **>(top - 160);
  for (int i = 0; i < 20; ++i) frame[i] = nullptr;
  frame[11] = reinterpret_cast<void *>(entry);  // x30
  return frame;
}
#endif
#endif
