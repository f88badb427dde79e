// Which opcodes there are, and what executes them.
#pragma once
#include <string>
#include <unordered_map>

#include "program.h"

namespace cs_emu::ptx {

enum class Form : uint8_t {
  plain,   // outputs, then inputs
  move,    // mov: registers, addresses, packing and unpacking
  access,  // ld, st, atom, red: one operand is an address
  branch,
  call,
  leave,  // ret, exit
  wide    // warp.h
};

struct Operation {
  Form form = Form::plain;
  Flow flow = Flow::next;
  Handler run = nullptr;
  uint8_t outs = 1;
  uint8_t ins = 0;
  uint8_t bits[4] = {64, 64, 64, 64};  // of immediates among the inputs
  uint8_t count = 1;                   // elements of a vector
  Handler both = nullptr;              // for "d|p"
  int64_t mode = 0;                    // Instruction::offset where there is no address
  Space space = Space::none;
  uint8_t bytes = 0;  // of an access
  const WarpInstruction *wide = nullptr;
  uint8_t fewer = 0;  // inputs that may be missing; they are zero then
};

typedef std::unordered_map<std::string, Operation> Table;

// Null: unknown.
const Operation *find_operation(Text opcode);
// From the '{' of a body to after its '}'. Throws Refused at an opcode that is not known.
void check_opcodes(Lexer &lexer);

// The rooms of the table.
void add_integer(Table &table);
void add_real(Table &table);
void add_logic(Table &table);
void add_collective(Table &table);
// Families that are read from the name: false = not one of these.
bool conversion(Text opcode, Operation *operation);
bool access(Text opcode, Operation *operation);
bool set_predicate(Text opcode, Operation *operation);

void move(Machine &, const Instruction &);  // lane by lane
void pack(Machine &, const Instruction &);  // offset: bits of a part
void unpack(Machine &, const Instruction &);
void invert(Machine &, const Instruction &);  // a predicate
void run_wide(Machine &, const Instruction &);
void copy_parameter(Machine &, const Instruction &);  // offset: from << 32 | to, count in keep: bytes

}  // namespace cs_emu::ptx
