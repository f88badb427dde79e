// The body of a function to instructions.
#include <algorithm>

#include "operands.h"

namespace cs_emu::ptx {
namespace {

struct Placed {                               // a function in the program
  int start = -1;                             // -1: being decoded
  std::vector<uint64_t> parameters, results;  // addresses in the parameters of calls
};

Role role(Text opcode) {
  const auto starts = [&](Text with) { return opcode.substr(0, with.size()) == with; };
  return starts("selp.")                     ? Role::select
         : opcode == "and.pred"              ? Role::and_pred
         : opcode == "or.pred"               ? Role::or_pred
         : starts("ld.") || starts("ldu.")   ? Role::load
         : starts("st.")                     ? Role::store
         : starts("atom.") || starts("red.") ? Role::atomic
                                             : Role::other;
}

class Decoder {
 public:
  Decoder(Module &module, Program &program) : module_(module), program_(program), operands_(module, program) {}

  void all(const Function &kernel) {
    survey(kernel);
    program_.dynamic_shared = (program_.static_shared + dynamic_align_ - 1) / dynamic_align_ * dynamic_align_;
    operands_.dynamic_shared = program_.dynamic_shared;
    function(kernel);
    program_.entry = placed_.at(kernel.name).start;
    program_.registers = operands_.register_count();
    program_.local_bytes = (program_.local_bytes + 15) / 16 * 16;
    program_.call_bytes = (program_.call_bytes + 15) / 16 * 16;
  }

 private:
  // Which functions are called, and which shared variables there are: their addresses.
  void survey(const Function &f) {
    if (surveyed_.count(f.name)) return;
    surveyed_.insert({f.name, {}});
    if (!f.begin) throw Refused{"function " + f.name + " has no body"};
    Lexer lexer(f.begin, f.end, f.line);
    std::vector<const Function *> callees;
    bool call = false;
    while (!lexer.ended()) {
      if (lexer.is(".shared")) {
        std::vector<std::string> names;
        const Variable v = read_declaration(lexer, &names);
        for (const std::string &name : names) surveyed_[f.name][name] = place_shared(v);
        continue;
      }
      if (lexer.is(".loc") || lexer.is(".file")) {
        lexer.skip_line();
        continue;
      }
      const Text word = lexer.word;
      lexer.next();
      if (word == ";") call = false;
      if (word.substr(0, 4) == "call" && (word.size() == 4 || word[4] == '.')) call = true;
      if (!std::isalpha(static_cast<unsigned char>(word[0])) && word[0] != '_' && word[0] != '$') continue;
      const std::string name(word);
      if (call) {
        auto it = module_.functions.find(name);
        if (it != module_.functions.end()) callees.push_back(&it->second);
      }
      auto it = module_.variables.find(name);
      if (it == module_.variables.end() || it->second.space != Space::shared || operands_.module_shared.count(name))
        continue;
      if (it->second.dynamic) dynamic_align_ = std::max(dynamic_align_, it->second.align);
      operands_.module_shared[name] = it->second.dynamic ? 0 : place_shared(it->second);
    }
    for (const Function *callee : callees) survey(*callee);
    callees_[f.name] = callees;
  }
  uint64_t place_shared(const Variable &v) {
    const uint64_t at = (program_.static_shared + v.align - 1) / v.align * v.align;
    program_.static_shared = static_cast<uint32_t>(at + v.bytes);
    return at;
  }
  uint64_t place_call(const Variable &v) {
    const uint64_t at = (call_now_ + v.align - 1) / v.align * v.align;
    call_now_ = static_cast<uint32_t>(at + v.bytes);
    program_.call_bytes = std::max(program_.call_bytes, call_now_);
    return at;
  }

  void function(const Function &f) {
    auto found = placed_.find(f.name);
    if (found != placed_.end()) {
      if (found->second.start < 0)
        throw Refused{"function " + f.name + " calls itself: registers are one set a function here"};
      return;
    }
    placed_[f.name];
    for (const Function *callee : callees_[f.name]) function(*callee);
    Placed &mine = placed_[f.name];
    operands_.open();
    for (size_t k = 0; k < f.parameters.size(); ++k) {
      Variable v = f.parameters[k];
      if (f.entry)
        program_.parameter_bytes = std::max(program_.parameter_bytes, static_cast<uint32_t>(v.address + v.bytes));
      else {
        mine.parameters.push_back(place_call(v));
        v.address = mine.parameters.back() + call_parameters;
      }
      operands_.declare(f.parameter_names[k], v, 0);
    }
    for (size_t k = 0; k < f.results.size(); ++k) {
      Variable v = f.results[k];
      mine.results.push_back(place_call(v));
      v.address = mine.results.back() + call_parameters;
      operands_.declare(f.result_names[k], v, 0);
    }
    const int start = static_cast<int>(program_.code.size());
    body(f);
    operands_.close();
    placed_[f.name].start = start;
  }

  void body(const Function &f) {
    Lexer lexer(f.begin, f.end, f.line);
    std::vector<uint32_t> calls;  // where the parameters of calls of a scope begin
    do {
      if (lexer.take('{')) {
        operands_.open();
        calls.push_back(call_now_);
      } else if (lexer.is('}')) {
        operands_.close();
        if (calls.size() > 1) call_now_ = calls.back();
        calls.pop_back();
        lexer.next();
      } else if (lexer.take(';')) {
        continue;
      } else if (lexer.word[0] == '.') {
        directive(f, lexer);
      } else statement(lexer);
    } while (!calls.empty());
    Instruction end;
    end.flow = Flow::leave;
    end.line = lexer.line();
    program_.code.push_back(end);
    program_.opcodes.resize(program_.code.size(), "ret");
  }

  void directive(const Function &f, Lexer &lexer) {
    if (lexer.is(".loc") || lexer.is(".file")) return lexer.skip_line();
    if (lexer.is(".pragma")) {
      while (!lexer.take(';')) lexer.next();
      return;
    }
    std::vector<std::string> names;
    Variable v = read_declaration(lexer, &names);
    for (const std::string &name : names) {
      switch (v.space) {
        case Space::reg: break;
        case Space::param: v.address = place_call(v) + call_parameters; break;
        case Space::shared: v.address = surveyed_[f.name][name]; break;
        case Space::local:
          v.address = (program_.local_bytes + v.align - 1) / v.align * v.align;
          program_.local_bytes = static_cast<uint32_t>(v.address + v.bytes);
          break;
        default: lexer.wrong("no such variable inside of a function");
      }
      operands_.declare(name, v, lexer.line());
    }
    lexer.expect(';');
  }

  void statement(Lexer &lexer) {
    Instruction i;
    if (lexer.take('@')) {
      i.negated = lexer.take('!');
      i.guard = operands_.register_of(lexer.name(), lexer);
    }
    i.line = lexer.line();
    const Text opcode = lexer.name();
    if (i.guard < 0 && lexer.take(':'))
      return operands_.label(std::string(opcode), static_cast<int>(program_.code.size()));
    const Operation *o = find_operation(opcode);
    if (!o) throw Refused{"line " + std::to_string(i.line) + ": unknown instruction " + std::string(opcode)};
    i.run = o->run;
    i.flow = o->flow;
    i.offset = o->mode;
    switch (o->form) {
      case Form::branch: {
        operands_.wanted(std::string(lexer.name()), static_cast<int>(program_.code.size()));
        program_.code.push_back(i);
        break;
      }
      case Form::leave: program_.code.push_back(i); break;
      case Form::call: call(lexer, i); break;
      default: general(lexer, *o, opcode, i);
    }
    lexer.expect(';');
    program_.opcodes.resize(program_.code.size(), opcode);
  }

  void general(Lexer &lexer, const Operation &o, Text opcode, Instruction i) {
    std::vector<Operand> list;
    const unsigned outs = o.form == Form::wide ? 0 : opcode.substr(0, 4) == "red." || !o.outs ? 0 : 1;
    while (!lexer.is(';')) {
      const size_t k = list.size();
      const int bits = o.form == Form::wide || k < outs || k - outs >= 4 ? 64 : o.bits[k - outs];
      list.push_back(operands_.read(lexer, bits, i));
      if (!lexer.take(',')) break;
    }
    if (o.form == Form::wide) return wide(lexer, o, opcode, list, i);
    std::vector<Place> places;
    if (opcode.substr(0, 4) == "red.") places.push_back(-1);
    unsigned read = 0;
    for (size_t k = 0; k < list.size(); ++k) {
      const Operand &operand = list[k];
      if (k < outs) {
        if (operand.bits < 64) i.keep = (uint64_t(1) << operand.bits) - 1;
        if (operand.second >= 0 && !o.both) lexer.wrong("one result");
        if (operand.second >= 0) i.run = o.both;
      } else read += static_cast<unsigned>(operand.places.size());
      if (operand.is_address) i.offset = operand.offset;
      places.insert(places.end(), operand.places.begin(), operand.places.end());
      if (operand.second >= 0) places.push_back(operand.second);
    }
    const size_t most = sizeof i.op / sizeof *i.op;
    if (o.form == Form::move && list.size() == 2) {
      const unsigned out = static_cast<unsigned>(list[0].places.size());
      const int bits = o.bits[0];
      if (out > 1) {
        i.run = unpack;
        i.count = static_cast<uint8_t>(out);
        i.offset = bits / static_cast<int>(out);
        i.keep = ~0ull;
      } else if (read > 1) {
        i.run = pack;
        i.offset = bits / static_cast<int>(read);
      }
    } else if (read > o.ins || read + o.fewer < o.ins || (outs && list[0].places.size() != o.outs))
      lexer.wrong(std::to_string(o.outs) + " results and " + std::to_string(o.ins) + " operands");
    if (places.size() > most) lexer.wrong("fewer operands");
    std::copy(places.begin(), places.end(), i.op);
    i.inputs = static_cast<uint8_t>(read);
    i.outputs = static_cast<uint8_t>(places.size() - read);
    i.role = role(opcode);
    i.space = o.space;
    i.bytes = o.bytes;
    if (o.form == Form::access) i.count = o.count;
    program_.code.push_back(i);
  }

  void wide(Lexer &lexer, const Operation &o, Text opcode, const std::vector<Operand> &list, Instruction i) {
    Wide w;
    w.what = o.wide;
    for (const Operand &operand : list)
      for (Place p : operand.places) {
        if (static_cast<int>(w.out.size()) < o.wide->outs) {
          w.out.push_back(p);
        } else {
          w.in.push_back(p);
          w.offset.push_back(operand.is_address ? operand.offset : 0);
        }
      }
    const int ins = static_cast<int>(w.in.size());
    if (static_cast<int>(w.out.size()) != o.wide->outs || ins > o.wide->ins || ins < o.wide->ins - o.wide->optional)
      lexer.wrong(std::to_string(o.wide->outs) + " results and " + std::to_string(o.wide->ins) + " operands");
    if (opcode.substr(0, 5) == "wgmma") program_.products = true;
    i.target = static_cast<int>(program_.wide.size());
    program_.wide.push_back(w);
    program_.code.push_back(i);
  }

  void copies(const std::vector<Variable> &from, const std::vector<uint64_t> &to, bool back, Instruction i) {
    for (size_t k = 0; k < from.size(); ++k) {
      uint64_t a = from[k].address - call_parameters, b = to[k];
      if (back) std::swap(a, b);
      i.flow = Flow::next;
      i.target = -1;
      i.run = copy_parameter;
      i.offset = static_cast<int64_t>(a << 32 | b);
      i.keep = from[k].bytes;
      program_.code.push_back(i);
    }
  }

  // call (result), function, (parameters);
  void call(Lexer &lexer, Instruction i) {
    std::vector<Variable> lists[2];  // results, parameters
    std::string name;
    while (!lexer.is(';')) {
      if (lexer.take('(')) {
        std::vector<Variable> &list = lists[name.empty() ? 0 : 1];
        while (!lexer.take(')')) {
          list.push_back(operands_.variable(lexer.name(), lexer));
          lexer.take(',');
        }
      } else name = std::string(lexer.name());
      lexer.take(',');
    }
    auto found = placed_.find(name);
    if (found == placed_.end() || found->second.start < 0) lexer.wrong("a function that is known");
    const Placed &callee = found->second;
    if (lists[0].size() != callee.results.size() || lists[1].size() != callee.parameters.size())
      lexer.wrong("the parameters of " + name);
    copies(lists[1], callee.parameters, false, i);
    i.target = callee.start;
    program_.code.push_back(i);
    copies(lists[0], callee.results, true, i);
  }

  Module &module_;
  Program &program_;
  Operands operands_;
  std::map<std::string, std::map<std::string, uint64_t>> surveyed_;  // function -> its shared variables
  std::map<std::string, std::vector<const Function *>> callees_;
  std::map<std::string, Placed> placed_;
  uint32_t dynamic_align_ = 16, call_now_ = 0;
};

}  // namespace

std::shared_ptr<Program> decode(Module &module, const Function &kernel) {
  auto program = std::make_shared<Program>();
  Decoder(module, *program).all(kernel);
  return program;
}

}  // namespace cs_emu::ptx
