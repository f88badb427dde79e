// Names of a function body, and operands.
#include "operands.h"

namespace cs_emu::ptx {
namespace {

const char *const special_names[special_count] = {"%tid.x",           "%tid.y",       "%tid.z",
                                                  "%ntid.x",          "%ntid.y",      "%ntid.z",
                                                  "%ctaid.x",         "%ctaid.y",     "%ctaid.z",
                                                  "%nctaid.x",        "%nctaid.y",    "%nctaid.z",
                                                  "%laneid",          "%warpid",      "%nwarpid",
                                                  "%lanemask_eq",     "%lanemask_le", "%lanemask_lt",
                                                  "%lanemask_ge",     "%lanemask_gt", "%dynamic_smem_size",
                                                  "%total_smem_size", "%smid"};

}  // namespace

void Operands::close() {
  Scope scope = std::move(scopes_.back());
  scopes_.pop_back();
  for (auto &w : scope.wanted) {
    auto it = scope.labels.find(w.second);
    if (it != scope.labels.end()) program_.code[static_cast<size_t>(w.first)].target = it->second;
    else if (!scopes_.empty()) scopes_.back().wanted.push_back(w);
    else
      throw Refused{"line " + std::to_string(program_.code[static_cast<size_t>(w.first)].line) + ": no label " +
                    w.second};
  }
}

void Operands::declare(const std::string &name, const Variable &v, int line) {
  Symbol s;
  s.variable = v;
  std::string key = name;
  if (v.space == Space::reg) {
    const size_t open = name.find('<');
    if (open != std::string::npos) {
      uint64_t count = 0;
      if (!read_number(Text(name).substr(open + 1), &count) || count > 1000000)
        throw Refused{"line " + std::to_string(line) + ": a number of registers in " + name};
      s.count = static_cast<int>(count);
      key = name.substr(0, open + 1);
    }
    s.first = registers_;
    registers_ += s.count;
  }
  scopes_.back().symbols[key] = s;
}

const Operands::Symbol *Operands::find(const std::string &name) const {
  for (size_t k = scopes_.size(); k-- > 0;) {
    auto it = scopes_[k].symbols.find(name);
    if (it != scopes_[k].symbols.end()) return &it->second;
  }
  return nullptr;
}

bool Operands::find_register(Text name, Place *found, int *bits) {
  const Symbol *s = find(std::string(name));
  int index = 0;
  if (!s) {
    size_t digits = name.size();
    while (digits && std::isdigit(static_cast<unsigned char>(name[digits - 1]))) --digits;
    if (digits == name.size() || name.size() - digits > 7) return false;
    s = find(std::string(name.substr(0, digits)) + '<');
    if (!s) return false;
    index = std::atoi(std::string(name.substr(digits)).c_str());
    if (index >= s->count) return false;
  }
  if (s->variable.space != Space::reg) return false;
  *found = place(registers, s->first + index);
  *bits = s->variable.type.bits;
  return true;
}

bool Operands::find_special(Text name, Place *found) const {
  for (int k = 0; k < special_count; ++k)
    if (name == special_names[k]) {
      *found = place(specials, k);
      return true;
    }
  return false;
}

Place Operands::register_of(Text name, const Lexer &lexer) {
  Place found = -1;
  int bits = 0;
  if (!find_register(name, &found, &bits))
    throw Refused{"line " + std::to_string(lexer.line()) + ": no register " + std::string(name)};
  return found;
}

const Variable &Operands::variable(Text name, const Lexer &lexer) {
  const Symbol *s = find(std::string(name));
  if (!s || s->variable.space == Space::reg)
    throw Refused{"line " + std::to_string(lexer.line()) + ": no variable " + std::string(name)};
  return s->variable;
}

Place Operands::constant(uint64_t value) {
  auto it = constants_.find(value);
  if (it != constants_.end()) return it->second;
  Register all;
  all.fill(value);
  program_.constants.push_back(all);
  const Place p = place(constants, static_cast<int>(program_.constants.size()) - 1);
  constants_[value] = p;
  return p;
}

uint64_t Operands::symbol_address(Text name, const Lexer &lexer) {
  const std::string key(name);
  if (const Symbol *s = find(key)) return s->variable.address;
  auto it = module_.variables.find(key);
  if (it == module_.variables.end()) throw Refused{"line " + std::to_string(lexer.line()) + ": unknown name " + key};
  if (it->second.space != Space::shared) return it->second.address;
  return it->second.dynamic ? dynamic_shared : module_shared.at(key);
}

// One register, number or address of a variable.
void Operands::value(Lexer &lexer, int bits, const Instruction &i, Operand *operand) {
  const uint64_t ones = bits >= 64 ? ~0ull : (uint64_t(1) << bits) - 1;
  uint64_t number = 0;
  if (lexer.take('!')) {
    Instruction inverse;
    inverse.run = invert;
    inverse.line = i.line;
    inverse.op[0] = place(registers, registers_++);
    inverse.op[1] = register_of(lexer.name(), lexer);
    program_.code.push_back(inverse);
    operand->places.push_back(inverse.op[0]);
    return;
  }
  const bool negative = lexer.take('-');
  if (read_number(lexer.word, &number)) {
    lexer.next();
    operand->places.push_back(constant((negative ? 0 - number : number) & ones));
    return;
  }
  if (negative) lexer.wrong("a number");
  const Text name = lexer.name();
  Place found = -1;
  if (name == "_") found = place(registers, registers_++);
  else if (name == "WARP_SZ") found = constant(32);
  else if (find_special(name, &found)) operand->bits = 32;
  else if (!find_register(name, &found, &operand->bits)) {
    uint64_t address = symbol_address(name, lexer);
    if (!operand->is_address && lexer.take('+')) {
      if (!read_number(lexer.word, &number)) lexer.wrong("a number");
      lexer.next();
      address += number;
    }
    found = constant(address);
  }
  operand->places.push_back(found);
}

Operand Operands::read(Lexer &lexer, int bits, const Instruction &i) {
  Operand operand;
  if (lexer.take('{')) {
    do value(lexer, bits, i, &operand);
    while (lexer.take(','));
    lexer.expect('}');
    return operand;
  }
  if (lexer.take('[')) {
    operand.is_address = true;
    value(lexer, 64, i, &operand);
    while (lexer.is('+') || lexer.is('-')) {
      bool negative = lexer.take('-');
      if (!negative) {
        lexer.next();
        negative = lexer.take('-');
      }
      uint64_t number = 0;
      if (!read_number(lexer.word, &number)) lexer.wrong("an offset");
      lexer.next();
      operand.offset += static_cast<int64_t>(negative ? 0 - number : number);
    }
    lexer.expect(']');
    return operand;
  }
  value(lexer, bits, i, &operand);
  if (lexer.take('|')) operand.second = register_of(lexer.name(), lexer);
  return operand;
}

}  // namespace cs_emu::ptx
