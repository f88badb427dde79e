// Emulated device memory: every allocation ends at memory without access and has guard bytes around it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace cs_emu {

// CD FF CD FF ...: NaN as fp32 and as fp16, a number far out of any range as int32.
void poison(void *p, size_t bytes);

void *device_alloc(size_t bytes);            // nullptr: over the emulated device's memory
int device_free(void *p, std::string *text); // CUresult; damage to the guards is described in *text
bool is_device(const void *p, size_t bytes); // wholly inside one allocation
void *host_alloc(size_t bytes);
int host_free(void *p);
bool is_pinned(const void *p, size_t bytes);
// First allocation whose guards are damaged, described; "" when all are well. A damage is reported once.
std::string check_guards();
// "3 bytes past the end of an allocation of 128 bytes" or the like.
std::string describe_address(const void *p);
// What kernels may access: device and page-locked memory. The version is another one when that has changed.
uint64_t allocations_version();
void each_allocation(void (*visit)(uintptr_t begin, size_t bytes));
size_t memory_total();
size_t memory_used();
size_t live_allocations();

}  // namespace cs_emu
