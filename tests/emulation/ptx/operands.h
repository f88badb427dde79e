// Names of a function body, and operands.
#pragma once
#include <map>

#include "operations.h"

namespace cs_emu::ptx {

struct Operand {
  std::vector<Place> places;  // several: {a, b}
  Place second = -1;          // of d|p
  int bits = 64;              // of a register
  bool is_address = false;    // [r + 4]
  int64_t offset = 0;
};

class Operands {
 public:
  Operands(Module &module, Program &program) : module_(module), program_(program) {}

  void open() { scopes_.emplace_back(); }
  void close();  // labels that were wanted and not met belong to the scope around
  // "%r<10>": ten registers.
  void declare(const std::string &name, const Variable &variable, int line);
  void label(const std::string &name, int instruction) { scopes_.back().labels[name] = instruction; }
  void wanted(const std::string &name, int instruction) { scopes_.back().wanted.push_back({instruction, name}); }

  Place register_of(Text name, const Lexer &lexer);
  const Variable &variable(Text name, const Lexer &lexer);
  // bits: of an immediate. i: the guard and the line of instructions that have to come before.
  Operand read(Lexer &lexer, int bits, const Instruction &i);
  Place constant(uint64_t value);
  int register_count() const { return registers_; }

  std::map<std::string, uint64_t> module_shared;  // addresses of the module's shared variables
  uint64_t dynamic_shared = 0;

 private:
  struct Symbol {
    Variable variable;
    int first = 0, count = 1;  // registers
  };
  struct Scope {
    std::unordered_map<std::string, Symbol> symbols;  // of %r<10>: "%r<"
    std::unordered_map<std::string, int> labels;
    std::vector<std::pair<int, std::string>> wanted;
  };
  // A register: its place and bits.
  bool find_register(Text name, Place *place, int *bits);
  const Symbol *find(const std::string &name) const;
  bool find_special(Text name, Place *place) const;
  void value(Lexer &lexer, int bits, const Instruction &i, Operand *operand);
  uint64_t symbol_address(Text name, const Lexer &lexer);

  Module &module_;
  Program &program_;
  std::vector<Scope> scopes_;
  std::unordered_map<uint64_t, Place> constants_;
  int registers_ = 0;
};

}  // namespace cs_emu::ptx
