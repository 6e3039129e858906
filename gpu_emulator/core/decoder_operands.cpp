// The operands of a statement: registers, constants, addresses, vectors.
#include <algorithm>
#include <bit>
#include <cstring>

#include "decoder.h"
#include "memory.h"

namespace ptxsim {

Operand Decoder::source(const SyntaxOperand& o, Type t) {
  const Operand found = loose_source(o, t);
  const int wanted = t == Type::pred ? 0 : std::max(bytes_of(t), 2);
  if (found.bytes != wanted) {
    fail("operand '" + std::string(o.text) + "' has not the size of type ." + name_of(t));
  }
  return found;
}

Operand Decoder::loose_source(const SyntaxOperand& o, Type t) {
  switch (o.kind) {
    case SyntaxOperand::name: {
      if (t == Type::pred) return predicate(o);
      if (o.text == "_") fail("'_' is no source");
      const Place* p = find(o.text);
      if (p && p->kind == Place::reg) return p->operand;
      if (const auto s = special(o.text)) return *s;
      return constant(t, symbol(o));
    }
    case SyntaxOperand::integer:
      if (t == Type::f32 || t == Type::f64) fail("an integer where a floating-point number is expected");
      return constant(t, o.bits);
    case SyntaxOperand::float32:
      if (bytes_of(t) == 8) fail("a 32-bit number where one of 64 bits is expected");
      return constant(t, o.bits);
    case SyntaxOperand::float64: {
      uint64_t bits = o.bits;
      if (bytes_of(t) == 4) bits = std::bit_cast<uint32_t>(static_cast<float>(std::bit_cast<double>(bits)));
      return constant(t, bits);
    }
    default: fail("a register or number is expected");
  }
}

Operand Decoder::destination(const SyntaxOperand& o, Type t) {
  const Operand found = loose_destination(o);
  const int wanted = t == Type::pred ? 0 : std::max(bytes_of(t), 2);
  if (!found.exists()) return temporary(wanted);
  if (found.bytes != wanted) fail("destination '" + std::string(o.text) + "' has not the size of type ." + name_of(t));
  return found;
}

Operand Decoder::loose_destination(const SyntaxOperand& o) {
  if (o.kind != SyntaxOperand::name) fail("a register is expected");
  if (o.text == "_") return kNoOperand;
  const Place* p = find(o.text);
  if (!p || p->kind != Place::reg) fail("'" + std::string(o.text) + "' is no register");
  destinations_.push_back(p->operand.offset);
  return p->operand;
}

Operand Decoder::predicate_named(std::string_view name) {
  const Place* p = find(name);
  if (!p || p->kind != Place::reg || p->operand.bytes != 0) fail("'" + std::string(name) + "' is no predicate");
  return p->operand;
}

Operand Decoder::predicate(const SyntaxOperand& o) {
  if (o.kind == SyntaxOperand::integer) return constant(Type::pred, o.bits);
  const Operand p = predicate_named(o.text);
  if (!o.negated) return p;
  Instruction i = begin(negate_predicate, Pipe::other);
  i.line = 0;
  i.a = p;
  i.d = temporary(0);
  emit(i);
  return i.d;
}

void Decoder::address(size_t index, Instruction& out) {
  const SyntaxOperand& o = written(index);
  if (o.kind != SyntaxOperand::address) fail("an address is expected");
  out.immediate = o.offset;
  if (!o.has_base) {
    out.a = constant(Type::u64, 0);
    return;
  }
  const Place* p = find(o.text);
  if (p && p->kind == Place::reg) {
    out.a = p->operand;
    if (out.a.bytes != 4 && out.a.bytes != 8) fail("an address has 32 or 64 bits");
    return;
  }
  SyntaxOperand name = o;
  name.offset = 0;
  out.a = constant(Type::u64, symbol(name));
}

std::optional<Operand> Decoder::frame_variable(size_t i, uint32_t* size) {
  const SyntaxOperand& o = written(i);
  const Place* p = o.has_base ? find(o.text) : nullptr;
  if (!p || p->kind != Place::frame) return std::nullopt;
  *size = p->bytes;
  return p->operand;
}

bool Decoder::is_kernel_parameter(size_t i) {
  const SyntaxOperand& o = written(i);
  const Place* p = o.has_base ? find(o.text) : nullptr;
  return p && p->kind == Place::kernel_parameter;
}

void Decoder::vector(const SyntaxOperand& o, Type t, Instruction& out, bool loose) {
  std::vector<Operand> list;
  const auto one = [&](const SyntaxOperand& part) { list.push_back(loose ? loose_source(part, t) : source(part, t)); };
  if (o.kind == SyntaxOperand::vector) {
    for (const auto& part : o.parts) one(part);
  } else {
    one(o);
  }
  set_list(list, out);
}

void Decoder::destinations(const SyntaxOperand& o, Instruction& out) {
  std::vector<Operand> list;
  if (o.kind == SyntaxOperand::vector) {
    for (const auto& part : o.parts) list.push_back(loose_destination(part));
  } else {
    list.push_back(loose_destination(o));
  }
  set_list(list, out);
}

void Decoder::set_list(const std::vector<Operand>& list, Instruction& out) {
  out.list = static_cast<uint32_t>(program_.operands.size());
  out.list_size = static_cast<uint32_t>(list.size());
  program_.operands.insert(program_.operands.end(), list.begin(), list.end());
}

uint64_t Decoder::integer(size_t i) const {
  const SyntaxOperand& o = written(i);
  if (o.kind != SyntaxOperand::integer) fail("an integer constant is expected");
  return o.bits;
}

}  // namespace ptxsim
