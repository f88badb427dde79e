// PTX text to Module: directives outside of functions, and where the functions are.
#include <algorithm>

#include "module.h"
#include "operations.h"

namespace cs_emu::ptx {
namespace {

bool read_space(Text word, Space *space) {
  if (word == ".reg") *space = Space::reg;
  else if (word == ".param") *space = Space::param;
  else if (word == ".shared") *space = Space::shared;
  else if (word == ".local") *space = Space::local;
  else if (word == ".global") *space = Space::global;
  else if (word == ".const") *space = Space::constant;
  else return false;
  return true;
}

uint64_t number(Lexer &lexer) {
  uint64_t value = 0;
  const bool negative = lexer.take('-');
  if (!read_number(lexer.word, &value)) lexer.wrong("a number");
  lexer.next();
  return negative ? 0 - value : value;
}

// "= 40" or "= {1, 2, 3}" into the bytes of a global variable.
void initialise(Lexer &lexer, const Variable &variable, uint8_t *memory) {
  const uint64_t size = static_cast<uint64_t>(variable.type.bits) / 8;
  uint64_t at = 0;
  int depth = 0;
  do {
    if (lexer.take('{')) ++depth;
    else if (lexer.take('}')) --depth;
    else if (lexer.take(',')) continue;
    else {
      const uint64_t value = number(lexer);
      if (at + size > variable.bytes) lexer.wrong("fewer values");
      std::memcpy(memory + at, &value, size);
      at += size;
    }
  } while (depth);
}

// "(.param .u64 a, .param .u32 b)": addresses are offsets in one block of parameters.
void read_parameters(Lexer &lexer, std::vector<Variable> *variables, std::vector<std::string> *names) {
  uint64_t end = 0;
  lexer.expect('(');
  while (!lexer.take(')')) {
    std::vector<std::string> name;
    Variable v = read_declaration(lexer, &name);
    if (name.size() != 1 || v.space == Space::none) lexer.wrong("a parameter");
    v.address = (end + v.align - 1) / v.align * v.align;
    end = v.address + v.bytes;
    variables->push_back(v);
    names->push_back(name[0]);
    lexer.take(',');
  }
}

void read_function(Lexer &lexer, Module &module, bool entry) {
  Function f;
  f.entry = entry;
  if (!entry && lexer.is('(')) read_parameters(lexer, &f.results, &f.result_names);
  f.name = std::string(lexer.name());
  if (lexer.is('(')) read_parameters(lexer, &f.parameters, &f.parameter_names);
  while (!lexer.is('{') && !lexer.is(';')) {
    const Text directive = lexer.name();
    unsigned sizes[3] = {1, 1, 1};
    if (directive == ".noreturn" || directive == ".noinline") continue;
    if (directive == ".pragma") {
      lexer.next();
      lexer.take(';');
      continue;
    }
    for (unsigned &size : sizes) {
      size = static_cast<unsigned>(number(lexer));
      if (!lexer.take(',')) break;
    }
    if (directive == ".maxntid" || directive == ".reqntid") f.threads = sizes[0] * sizes[1] * sizes[2];
    else if (directive != ".minnctapersm" && directive != ".maxnreg" && directive != ".maxnctapersm")
      throw Refused{"line " + std::to_string(lexer.line()) + ": unknown directive " + std::string(directive)};
    if (directive == ".reqntid") std::copy(sizes, sizes + 3, f.required);
  }
  if (!lexer.take(';')) {
    f.begin = lexer.at();
    f.line = lexer.line();
    check_opcodes(lexer);
    f.end = lexer.ended() ? module.text.data() + module.text.size() : lexer.at();
  }
  Function &kept = module.functions[f.name];
  if (f.begin || !kept.begin) kept = f;
}

void read_variable(Lexer &lexer, Module &module, bool external) {
  std::vector<std::string> names;
  Variable v = read_declaration(lexer, &names);
  v.dynamic = v.space == Space::shared && external;
  for (const std::string &name : names) {
    if (v.space == Space::global || v.space == Space::constant) {
      if (external) throw Refused{"line " + std::to_string(lexer.line()) + ": .extern variable " + name};
      const size_t room = v.bytes + v.align + 16;
      module.memory.push_back(std::make_unique<uint8_t[]>(room));
      std::memset(module.memory.back().get(), 0, room);
      const uint64_t base = reinterpret_cast<uint64_t>(module.memory.back().get());
      v.address = (base + v.align - 1) / v.align * v.align;
      module.ranges.push_back({v.address, v.bytes});
      if (lexer.take('=')) initialise(lexer, v, reinterpret_cast<uint8_t *>(v.address));
    }
    module.variables[name] = v;
  }
  lexer.expect(';');
}

void read_target(Lexer &lexer, Module &module) {
  Text word = lexer.name();
  if (word.substr(0, 3) != "sm_") lexer.wrong("a target sm_XX");
  word.remove_prefix(3);
  if (!word.empty() && word.back() == 'a') {
    module.specific = true;
    word.remove_suffix(1);
  }
  uint64_t value = 0;
  if (!read_number(word, &value)) lexer.wrong("a target sm_XX");
  module.target = static_cast<int>(value);
  while (lexer.take(',')) lexer.next();
}

}  // namespace

bool read_type(Text word, Type *type) {
  if (word == ".pred" || word == "pred") {
    *type = {'p', 1};
    return true;
  }
  if (!word.empty() && word[0] == '.') word.remove_prefix(1);
  if (word.size() < 2 || !std::strchr("busf", word[0])) return false;
  const std::string digits(word.substr(1));
  const int bits = std::atoi(digits.c_str());
  if (digits != std::to_string(bits) || (bits != 8 && bits != 16 && bits != 32 && bits != 64)) return false;
  *type = {word[0], bits};
  return true;
}

Variable read_declaration(Lexer &lexer, std::vector<std::string> *names) {
  Variable v;
  unsigned vector = 1;
  bool typed = false;
  for (; !lexer.ended() && lexer.word[0] == '.'; lexer.next()) {
    if (read_space(lexer.word, &v.space)) continue;
    if (lexer.is(".align")) {
      lexer.next();
      uint64_t align = 0;
      if (!read_number(lexer.word, &align) || !align || align > 1024) lexer.wrong("an alignment");
      v.align = static_cast<uint32_t>(align);
    } else if (lexer.is(".v2")) vector = 2;
    else if (lexer.is(".v4")) vector = 4;
    else if (lexer.is(".ptr")) continue;
    else if (read_type(lexer.word, &v.type)) typed = true;
    else if (v.space == Space::none || v.space == Space::reg) lexer.wrong("a declaration");
  }
  if (!typed) lexer.wrong("a type");
  const uint64_t size = static_cast<uint64_t>(v.type.bits + 7) / 8 * vector;
  v.align = std::max(v.align, v.space == Space::reg ? 1u : static_cast<uint32_t>(size));
  v.bytes = v.space == Space::reg ? 0 : size;
  do {
    std::string name(lexer.name());
    if (lexer.take('<')) {
      name += '<' + std::string(lexer.name());
      lexer.expect('>');
    }
    uint64_t count = 1;
    while (lexer.take('[')) {
      count *= lexer.is(']') ? 0 : number(lexer);
      lexer.expect(']');
    }
    v.bytes *= count;
    names->push_back(name);
    if (v.space != Space::reg) break;
  } while (lexer.take(','));
  return v;
}

std::string Module::source(int line) const {
  size_t from = 0;
  for (int i = 1; i < line && from != std::string::npos; ++i) from = text.find('\n', from) + 1;
  std::string found = text.substr(from, text.find('\n', from) - from);
  const size_t first = found.find_first_not_of(" \t\r"), last = found.find_last_not_of(" \t\r");
  found = first == std::string::npos ? "" : found.substr(first, last - first + 1);
  for (char &c : found)
    if (c == '\t') c = ' ';
  return found.size() > 120 ? found.substr(0, 117) + "..." : found;
}

std::shared_ptr<Module> load_module(const char *text) {
  auto module = std::make_shared<Module>();
  module->text = text;
  Lexer lexer(module->text.data(), module->text.data() + module->text.size(), 1);
  bool external = false;
  while (!lexer.ended()) {
    const Text word = lexer.word;
    Space space;
    if (read_space(word, &space)) {
      read_variable(lexer, *module, external);
      external = false;
      continue;
    }
    lexer.next();
    if (word == ".version") lexer.next();
    else if (word == ".target") read_target(lexer, *module);
    else if (word == ".address_size") {
      if (!lexer.take("64")) lexer.wrong("addresses of 64 bits");
    } else if (word == ".extern") external = true;
    else if (word == ".visible" || word == ".weak" || word == ".common") external = false;
    else if (word == ".entry" || word == ".func") {
      read_function(lexer, *module, word == ".entry");
      external = false;
    } else if (word == ".file" || word == ".loc") lexer.skip_line();
    else if (word == ".pragma") {
      lexer.next();
      lexer.take(';');
    } else if (word == ".section") {
      lexer.next();
      lexer.skip_braces();
    } else throw Refused{"line " + std::to_string(lexer.line()) + ": unknown directive " + std::string(word)};
  }
  if (!module->target) throw Refused{"no .target"};
  return module;
}

}  // namespace cs_emu::ptx
