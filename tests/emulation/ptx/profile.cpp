#include "profile.h"

#include "../state.h"

namespace cs_emu::ptx {
namespace {
bool counting = false;
}  // namespace

void count_launch(const Program &program) {
  if (!counting) return;
  program.executed.resize(program.code.size());
  ++program.launches;
}

}  // namespace cs_emu::ptx

using namespace cs_emu;

// Begins to count, from 0, or stops. Nothing may wait to run.
EXPORT void cs_emu_profile(int on) {
  std::lock_guard<std::recursive_mutex> lock(state().mutex);
  ptx::counting = on != 0;
  if (!on) return;
  for (auto &module : state().modules) {
    if (!module.first->ptx) continue;
    for (auto &named : module.first->ptx->programs) {
      if (!named.second) continue;  // its text was refused
      named.second->executed.clear();
      named.second->launches = 0;
    }
  }
}

// What was counted: a line "launches kernel" for each kernel that ran, and after it for each of its instructions that
// was executed "count line opcode", the line being that of the PTX.
EXPORT const char *cs_emu_profile_text() {
  static std::string text;
  std::lock_guard<std::recursive_mutex> lock(state().mutex);
  text.clear();
  for (auto &module : state().modules) {
    if (!module.first->ptx) continue;
    for (auto &named : module.first->ptx->programs) {
      if (!named.second || !named.second->launches) continue;
      const ptx::Program &program = *named.second;
      text += std::to_string(program.launches) + " " + named.first + "\n";
      for (size_t pc = 0; pc < program.opcodes.size(); ++pc)
        if (program.executed[pc] && !program.opcodes[pc].empty())
          text += std::to_string(program.executed[pc]) + " " + std::to_string(program.code[pc].line) + " " +
                  std::string(program.opcodes[pc]) + "\n";
    }
  }
  return text.c_str();
}
