// wgmma: products of 64 rows by a group of four warps, straight from shared memory and asynchronously.
#pragma once
#include "mma.cuh"

// wgmma is of compute capability 9.0 alone: in code for sm_90a, which runs nowhere else.
#if defined(CS_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CS_HAVE_WGMMA 1
#else
#define CS_HAVE_WGMMA 0
#endif

// Matrix descriptor of wgmma for rows of 64 bytes along k, pieces swizzled by (row / 2) % 4 (the hardware's 64-byte
// swizzle; rows start at a multiple of 512): address / 16 in bits 0-13, the leading offset, unused with a swizzle, in
// 16-29, bytes from 8 rows to the next 8 / 16 in 32-45, the kind of swizzle in 62-63.
CS_DEVICE cs_u64 wgmma_descriptor(unsigned address) {
  return (cs_u64)(address >> 4 & 0x3fffu) | (cs_u64)1 << 16 | (cs_u64)(512 >> 4) << 32 | (cs_u64)2 << 62;
}

#if defined(CS_EMULATE)
// ---- host ----
// wgmma runs when its group is waited for, as late as it may, on what shared memory holds then; where that is not what
// it held at the start, somebody wrote too early or too late. Copies that wgmma reads need a fence between the two.
struct EmulatedWgmma {
  struct Product {
    void *sum;
    cs_u64 a, b;
    int group;
    bool i8;
    unsigned hash;
  } queue[16];
  int first, last, group;
};
CS_DEVICE EmulatedWgmma &emulated_wgmma() {
  static EmulatedWgmma threads[128];
  return threads[threadIdx.x & 127];
}
CS_DEVICE const char *emulated_operand(cs_u64 descriptor, int row, int byte) {
  unsigned at = ((unsigned)descriptor & 0x3fffu) << 4;
  at += row / 8 * ((unsigned)(descriptor >> 32 & 0x3fffu) << 4) + row % 8 * 64 + byte;
  if (descriptor >> 62 == 2) at ^= (at >> 7 & 3u) << 4;
  else __trap();
  return (const char *)cs_emu::runtime->dynamic_shared() + at;
}
CS_DEVICE unsigned emulated_word(cs_u64 descriptor, int row, int byte) {
  unsigned word;
  memcpy(&word, emulated_operand(descriptor, row, byte), 4);
  return word;
}
// Of what this thread's part of the product reads.
CS_DEVICE unsigned emulated_hash(cs_u64 a, cs_u64 b) {
  unsigned hash = 2166136261u;
  for (int row = 0; row < 128; ++row)
    for (int byte = 0; byte < 32; byte += 4) {
      if (row < 64) hash = (hash ^ emulated_word(a, row, byte)) * 16777619u;
      hash = (hash ^ emulated_word(b, row, byte)) * 16777619u;
    }
  return hash;
}
template <class Sum> CS_DEVICE void emulated_product(Sum *sum, cs_u64 a, cs_u64 b) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 & 3;
  for (int i = 0; i < 64; ++i) {
    const int row = 16 * warp + lane / 4 + (i & 2) * 4, column = i / 4 * 8 + lane % 4 * 2 + (i & 1);
    for (int byte = 0; byte < 32; byte += 4)
      emulated_dot(&sum[i], emulated_word(a, row, byte), emulated_word(b, column, byte));
  }
}
CS_DEVICE unsigned wgmma_address(SharedAddress p) { return (unsigned)(p - (char *)cs_emu::runtime->dynamic_shared()); }
CS_DEVICE void wgmma_async_fence() { emulated_copies().unfenced = false; }
CS_DEVICE void wgmma_start() {}
template <class Sum> CS_DEVICE void wgmma_hold(Sum (&)[64]) {}
template <bool I8>
CS_DEVICE void wgmma_64x128(typename MmaTypes<I8>::Sum (&sum)[64], cs_u64 a, cs_u64 b) {
  EmulatedWgmma &w = emulated_wgmma();
  if (emulated_copies().unfenced || w.last - w.first == 16) __trap();
  w.queue[w.last++ % 16] = {sum, a, b, w.group, I8, emulated_hash(a, b)};
}
CS_DEVICE void wgmma_commit() { ++emulated_wgmma().group; }
template <int PENDING> CS_DEVICE void wgmma_wait() {
  EmulatedWgmma &w = emulated_wgmma();
  for (; w.first < w.last && w.queue[w.first % 16].group < w.group - PENDING; ++w.first) {
    const EmulatedWgmma::Product &p = w.queue[w.first % 16];
    if (p.hash != emulated_hash(p.a, p.b)) __trap();
    if (p.i8) emulated_product((int *)p.sum, p.a, p.b);
    else emulated_product((float *)p.sum, p.a, p.b);
  }
  if (w.first == w.last) w.first = w.last = 0;
}

#elif CS_HAVE_WGMMA
// ---- device ----
CS_DEVICE unsigned wgmma_address(SharedAddress p) { return p; }
// What this thread wrote to shared memory (copies that have landed too) is there for wgmma.
CS_DEVICE void wgmma_async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
CS_DEVICE void wgmma_start() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
CS_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> CS_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define WGMMA_4(c, i) c(sum[i]), c(sum[i + 1]), c(sum[i + 2]), c(sum[i + 3])
#define WGMMA_16(c, i) WGMMA_4(c, i), WGMMA_4(c, i + 4), WGMMA_4(c, i + 8), WGMMA_4(c, i + 12)
#define WGMMA_64(c) WGMMA_16(c, 0), WGMMA_16(c, 16), WGMMA_16(c, 32), WGMMA_16(c, 48)
#define WGMMA_REGISTERS                                                                                               \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"   \
  "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"  \
  "%58,%59,%60,%61,%62,%63}"
#define WGMMA_FLOAT(v) "+f"(v)
#define WGMMA_INT(v) "+r"(v)
CS_DEVICE void wgmma_instruction(float (&sum)[64], cs_u64 a, cs_u64 b) {
  asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
               WGMMA_REGISTERS ", %64, %65, p, 1, 1, 0, 0; }"
               : WGMMA_64(WGMMA_FLOAT)
               : "l"(a), "l"(b));
}
CS_DEVICE void wgmma_instruction(int (&sum)[64], cs_u64 a, cs_u64 b) {
  asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
               WGMMA_REGISTERS ", %64, %65, p; }"
               : WGMMA_64(WGMMA_INT)
               : "l"(a), "l"(b));
}
// Sums before the first product and after the last wait: the compiler must not move what reads or writes them across.
CS_DEVICE void wgmma_hold(float (&sum)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}
CS_DEVICE void wgmma_hold(int (&sum)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+r"(sum[i])::"memory");
}
// sum (64 x 128) += a (64 x 32 bytes) * b (32 bytes x 128) by the four warps of a block, asynchronously. Of thread
// 32 w + l: rows 16 w + l / 4 (+ 8 for the second pair of four), columns 8 (i / 4) + 2 (l % 4) + i % 2.
template <bool I8>
CS_DEVICE void wgmma_64x128(typename MmaTypes<I8>::Sum (&sum)[64], cs_u64 a, cs_u64 b) {
  wgmma_instruction(sum, a, b);
}
#endif
