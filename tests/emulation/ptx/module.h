// A module of PTX text: what is in it. Functions are decoded when they are launched first (program.h).
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "text.h"

namespace cs_emu::ptx {

enum class Space : uint8_t { none, reg, param, shared, local, global, constant };

struct Type {
  char kind = 'b';  // b, u, s, f, p (predicate)
  int bits = 32;
};
// ".u32", ".f16", ".pred", ...; false: no such type.
bool read_type(Text word, Type *type);

struct Variable {  // also a parameter
  Space space = Space::none;
  Type type;
  uint64_t bytes = 0;  // of a register: 0
  uint32_t align = 1;
  uint64_t address = 0;  // in its space, once placed
  bool dynamic = false;  // .extern .shared x[]
};

struct Function {
  std::string name;
  bool entry = false;
  std::vector<Variable> parameters, results;
  std::vector<std::string> parameter_names, result_names;
  unsigned threads = 0;                         // .maxntid or .reqntid; 0 = not said
  unsigned required[3] = {0, 0, 0};             // .reqntid
  const char *begin = nullptr, *end = nullptr;  // the body, braces included; null: declared only
  int line = 0;                                 // where the body begins
};

struct Program;

struct Module {
  std::string text;
  int target = 0;         // 87
  bool specific = false;  // sm_90a: of that architecture alone
  std::unordered_map<std::string, Function> functions;
  std::unordered_map<std::string, Variable> variables;  // shared: no address before a kernel is decoded
  std::vector<std::unique_ptr<uint8_t[]>> memory;       // of global variables
  std::vector<std::pair<uint64_t, uint64_t>> ranges;    // the same: address, bytes
  std::map<std::string, std::shared_ptr<Program>> programs;

  // Line `line` without the blanks around it.
  std::string source(int line) const;
};

// Throws Refused. Every opcode is looked up here; the rest of a body is read when it runs.
std::shared_ptr<Module> load_module(const char *text);

// One declaration, from its state space on ("shared", "reg", "param", ...) to before ',' or ';' or ')'. Names go to
// `names`, all with the same variable; "%r<10>" stays as it is.
Variable read_declaration(Lexer &lexer, std::vector<std::string> *names);

}  // namespace cs_emu::ptx
