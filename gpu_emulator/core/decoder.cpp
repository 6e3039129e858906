#include "decoder.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cstring>

#include "memory.h"

namespace ptxsim {

namespace {

constexpr uint32_t kRegisterAlignment = 64;  // of lanes, for vector loads

uint32_t rounded_up(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; }

struct NamedSpecial {
  const char* name;
  Special special;
};

constexpr NamedSpecial kSpecials[] = {
    {"%tid.x", Special::tid_x},
    {"%tid.y", Special::tid_y},
    {"%tid.z", Special::tid_z},
    {"%ntid.x", Special::ntid_x},
    {"%ntid.y", Special::ntid_y},
    {"%ntid.z", Special::ntid_z},
    {"%ctaid.x", Special::ctaid_x},
    {"%ctaid.y", Special::ctaid_y},
    {"%ctaid.z", Special::ctaid_z},
    {"%nctaid.x", Special::nctaid_x},
    {"%nctaid.y", Special::nctaid_y},
    {"%nctaid.z", Special::nctaid_z},
    {"%clusterid.x", Special::clusterid_x},
    {"%clusterid.y", Special::clusterid_y},
    {"%clusterid.z", Special::clusterid_z},
    {"%nclusterid.x", Special::nclusterid_x},
    {"%nclusterid.y", Special::nclusterid_y},
    {"%nclusterid.z", Special::nclusterid_z},
    {"%cluster_ctaid.x", Special::cluster_ctaid_x},
    {"%cluster_ctaid.y", Special::cluster_ctaid_y},
    {"%cluster_ctaid.z", Special::cluster_ctaid_z},
    {"%cluster_nctaid.x", Special::cluster_nctaid_x},
    {"%cluster_nctaid.y", Special::cluster_nctaid_y},
    {"%cluster_nctaid.z", Special::cluster_nctaid_z},
    {"%cluster_ctarank", Special::cluster_ctarank},
    {"%cluster_nctarank", Special::cluster_nctarank},
    {"%is_explicit_cluster", Special::is_explicit_cluster},
    {"%laneid", Special::laneid},
    {"%warpid", Special::warpid},
    {"%nwarpid", Special::nwarpid},
    {"%smid", Special::smid},
    {"%nsmid", Special::nsmid},
    {"%gridid", Special::gridid},
    {"%lanemask_eq", Special::lanemask_eq},
    {"%lanemask_le", Special::lanemask_le},
    {"%lanemask_lt", Special::lanemask_lt},
    {"%lanemask_ge", Special::lanemask_ge},
    {"%lanemask_gt", Special::lanemask_gt},
    {"%dynamic_smem_size", Special::dynamic_smem_size},
    {"%total_smem_size", Special::total_smem_size},
    {"%envreg1", Special::envreg_workspace_high},
    {"%envreg2", Special::envreg_workspace_low},
    {"WARP_SZ", Special::zero},
};

// The families in the order in which they are asked.
constexpr bool (*kFamilies[])(Decoder&) = {
    decode_moves,       decode_integers,    decode_logic,  decode_floats,  decode_functions, decode_halves,
    decode_comparisons, decode_conversions, decode_memory, decode_atomics, decode_warp,      decode_control,
    decode_barriers,    decode_matrices,    decode_wgmma,  decode_async,   decode_mbarrier,
};

}  // namespace

void Decoder::fail(const std::string& what) const {
  const uint32_t line = statement_ ? statement_->line : function_->line;
  const std::string_view text = module_.syntax().line(line);
  throw Fault(format("PTX line %u: %.*s: %s", line, static_cast<int>(std::min<size_t>(text.size(), 300)), text.data(),
                     what.c_str()));
}

// --- The statement at hand. ---

void Decoder::split(std::string_view opcode) {
  parts_.clear();
  used_ = 1;
  while (true) {
    const size_t dot = opcode.find('.');
    parts_.push_back(opcode.substr(0, dot));
    if (dot == std::string_view::npos) return;
    opcode.remove_prefix(dot + 1);
  }
}

bool Decoder::take(std::string_view modifier) {
  for (size_t i = 1; i < parts_.size(); ++i) {
    if (!(used_ >> i & 1) && parts_[i] == modifier) {
      used_ |= 1u << i;
      return true;
    }
  }
  return false;
}

std::optional<Type> Decoder::maybe_type() {
  for (size_t i = 1; i < parts_.size(); ++i) {
    if (used_ >> i & 1) continue;
    if (const auto t = type_named(parts_[i])) {
      used_ |= 1u << i;
      return t;
    }
  }
  return std::nullopt;
}

Type Decoder::type() {
  if (const auto t = maybe_type()) return *t;
  fail("the instruction names no type");
}

Type Decoder::last_type() const {
  for (size_t i = parts_.size(); i-- > 1;) {
    if (const auto t = type_named(parts_[i])) return *t;
  }
  return Type::none;
}

std::string Decoder::unused_parts() const {
  std::string text;
  for (size_t i = 1; i < parts_.size(); ++i) {
    if (!(used_ >> i & 1)) text += "." + std::string(parts_[i]);
  }
  return text;
}

const SyntaxOperand& Decoder::written(size_t i) const {
  if (i >= count()) fail("an operand is missing");
  return statement_->operands[i];
}

// --- Places. ---

Operand Decoder::allocate(int bytes) {
  Operand o{program_.register_bytes, Operand::kRegisters, static_cast<uint8_t>(bytes)};
  program_.register_bytes +=
      rounded_up(bytes == 0 ? 4 : static_cast<uint32_t>(bytes) * kLanes, bytes == 0 ? 4 : kRegisterAlignment);
  return o;
}

Operand Decoder::temporary(int bytes) {
  program_.register_bytes = rounded_up(program_.register_bytes, kRegisterAlignment);
  return allocate(bytes);
}

Operand Decoder::carry() {
  if (!carry_.exists()) carry_ = temporary(0);
  return carry_;
}

Operand Decoder::constant_bytes(int bytes, uint64_t bits) {
  const std::string key = std::to_string(bytes) + ":" + std::to_string(bits);
  if (const auto known = constants_.find(key); known != constants_.end()) return known->second;
  auto& memory = program_.constants;
  memory.resize(rounded_up(static_cast<uint32_t>(memory.size()), kRegisterAlignment));
  const Operand o{static_cast<uint32_t>(memory.size()), Operand::kConstants, static_cast<uint8_t>(bytes)};
  if (bytes == 0) {
    const uint32_t word = bits ? kAll : 0;
    memory.insert(memory.end(), reinterpret_cast<const uint8_t*>(&word), reinterpret_cast<const uint8_t*>(&word) + 4);
  } else {
    uint8_t lane[16] = {};
    std::memcpy(lane, &bits, 8);
    if (bytes == 16 && static_cast<int64_t>(bits) < 0) std::memset(lane + 8, 0xff, 8);
    for (int l = 0; l < kLanes; ++l) memory.insert(memory.end(), lane, lane + bytes);
  }
  constants_[key] = o;
  return o;
}

Operand Decoder::constant(Type t, uint64_t bits) {
  const int bytes = t == Type::pred ? 0 : std::max(bytes_of(t), 2);
  if (bytes > 0 && bytes < 8) bits &= (uint64_t{1} << (8 * bytes)) - 1;
  return constant_bytes(bytes, bits);
}

std::optional<Decoder::Place> Decoder::numbered(const ScopeOf& scope, std::string_view name) const {
  size_t digits = name.size();
  while (digits > 0 && std::isdigit(static_cast<unsigned char>(name[digits - 1]))) --digits;
  if (digits == name.size()) return std::nullopt;
  for (size_t split = digits; split < name.size(); ++split) {
    for (const auto& n : scope.numbered) {
      if (n.prefix != name.substr(0, split)) continue;
      const uint32_t number = static_cast<uint32_t>(std::stoul(std::string(name.substr(split))));
      if (number >= n.count) continue;
      const int bytes = n.type == Type::pred ? 0 : std::max(bytes_of(n.type), 2);
      Place p;
      p.operand = {n.first + number * (bytes == 0 ? 4 : static_cast<uint32_t>(bytes) * kLanes), Operand::kRegisters,
                   static_cast<uint8_t>(bytes)};
      p.type = n.type;
      return p;
    }
  }
  return std::nullopt;
}

const Decoder::Place* Decoder::find(std::string_view name) {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (const auto known = scope->places.find(name); known != scope->places.end()) return &known->second;
    if (const auto place = numbered(*scope, name)) return &(scope->places[name] = *place);
  }
  return nullptr;
}

std::optional<Operand> Decoder::special(std::string_view name) {
  if (const auto known = specials_.find(name); known != specials_.end()) return known->second;
  if (name == "WARP_SZ") return constant(Type::u32, kLanes);
  for (const auto& s : kSpecials) {
    if (name != s.name) continue;
    program_.register_bytes = rounded_up(program_.register_bytes, kRegisterAlignment);
    const Operand o = allocate(4);
    program_.specials.emplace_back(s.special, o);
    specials_[s.name] = o;
    return o;
  }
  return std::nullopt;
}

void Decoder::declare(const Declaration& d) {
  ScopeOf& scope = scopes_.back();
  program_.register_bytes = rounded_up(program_.register_bytes, kRegisterAlignment);
  Place p;
  p.type = d.type;
  p.bytes = d.bytes;
  switch (d.where) {
    case Declaration::reg: {
      const int bytes = d.type == Type::pred ? 0 : std::max(bytes_of(d.type), 2);
      if (d.numbered > 0) {
        scope.numbered.push_back({d.name, program_.register_bytes, d.numbered, d.type});
        program_.register_bytes += d.numbered * (bytes == 0 ? 4 : static_cast<uint32_t>(bytes) * kLanes);
        return;
      }
      p.operand = allocate(bytes);
      break;
    }
    case Declaration::shared:
      program_.static_shared_bytes = rounded_up(program_.static_shared_bytes, d.align);
      p.kind = Place::shared;
      p.address = kSharedStart + program_.static_shared_bytes;
      program_.static_shared_bytes += d.bytes;
      break;
    case Declaration::local:
      program_.local_bytes = rounded_up(program_.local_bytes, d.align);
      p.kind = Place::local;
      p.address = program_.local_bytes;
      program_.local_bytes += d.bytes;
      break;
    case Declaration::param: p = frame_place(d); break;
    default: fail("a variable of this state space is not known within a function");
  }
  scope.places[d.name] = p;
}

// A .param variable of a call: its bytes in every lane.
Decoder::Place Decoder::frame_place(const Declaration& d) {
  Place p;
  p.kind = Place::frame;
  p.bytes = rounded_up(std::max(d.bytes, 1u), std::max(d.align, 8u));
  p.type = d.type;
  program_.register_bytes = rounded_up(program_.register_bytes, kRegisterAlignment);
  p.operand = {program_.register_bytes, Operand::kRegisters, 0};
  program_.register_bytes += p.bytes * kLanes;
  return p;
}

void Decoder::layout_parameters(const Function& f) {
  uint32_t at = 0;
  for (const Declaration& d : f.parameters) {
    at = rounded_up(at, d.align);
    program_.parameter_offset.push_back(at);
    program_.parameter_size.push_back(d.bytes);
    Place p;
    p.kind = Place::kernel_parameter;
    p.address = at;
    p.bytes = d.bytes;
    scopes_.back().places[d.name] = p;
    at += d.bytes;
  }
  program_.parameter_bytes = at;
}

// --- Operands. ---

uint64_t Decoder::symbol(const SyntaxOperand& o) {
  uint64_t value = 0;
  if (const Place* p = find(o.text)) {
    if (p->kind == Place::reg) fail("a register where a variable is expected");
    if (p->kind == Place::frame) fail("the address of a call's parameter is not supported");
    value = p->address;
  } else if (uint8_t* memory = module_.variable(o.text, nullptr)) {
    value = reinterpret_cast<uint64_t>(memory);
  } else {
    fail("'" + std::string(o.text) + "' is not known");
  }
  return value + static_cast<uint64_t>(o.offset);
}

// --- Instructions. ---

Instruction Decoder::begin(Handler run, Pipe pipe) const {
  Instruction i;
  i.run = run;
  i.pipe = pipe;
  i.line = statement_->line;
  return i;
}

void Decoder::emit(const Instruction& i) {
  program_.code.push_back(i);
  program_.written.emplace_back(program_.destinations.size(), destinations_.size());
  program_.destinations.insert(program_.destinations.end(), destinations_.begin(), destinations_.end());
  destinations_.clear();
  if (!statement_ || statement_->guard.empty() || i.line == 0) return;
  Instruction& out = program_.code.back();
  out.guard = static_cast<int32_t>(predicate_named(statement_->guard).offset);
  out.guard_flip = statement_->guard_negated ? kAll : 0;
}

void Decoder::branch_to(std::string_view label, Instruction i) {
  scopes_.back().fixes.push_back({program_.code.size(), label, statement_->line});
  emit(i);
}

const std::vector<std::string_view>& Decoder::branch_targets(std::string_view name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (const auto known = scope->targets.find(name); known != scope->targets.end()) return known->second;
  }
  fail("branch targets '" + std::string(name) + "' are not known");
}

// Labels of a block may be used before they come: what is still open is looked for in the block around it.
void Decoder::close() {
  ScopeOf scope = std::move(scopes_.back());
  scopes_.pop_back();
  for (const auto& fix : scope.fixes) {
    if (const auto label = scope.labels.find(fix.label); label != scope.labels.end()) {
      program_.code[fix.instruction].target = label->second;
    } else if (!scopes_.empty()) {
      scopes_.back().fixes.push_back(fix);
    } else {
      throw Fault(format("PTX line %u: label %.*s is not known", fix.line, static_cast<int>(fix.label.size()),
                         fix.label.data()));
    }
  }
}

void Decoder::instruction(const Statement& s) {
  statement_ = &s;
  split(s.opcode);
  for (const auto family : kFamilies) {
    if (!family(*this)) continue;
    const std::string unused = unused_parts();
    if (!unused.empty()) fail("modifier " + unused + " is not implemented");
    return;
  }
  fail("instruction " + std::string(s.opcode) + " is not implemented");
}

void Decoder::function_body(const std::vector<Statement>& statements, ScopeOf first) {
  scopes_.push_back(std::move(first));
  for (const Statement& s : statements) {
    statement_ = &s;
    switch (s.kind) {
      case Statement::open: open(); break;
      case Statement::close: close(); break;
      case Statement::label:
        scopes_.back().labels[s.name] = static_cast<uint32_t>(program_.code.size());
        last_label_ = s.name;
        break;
      case Statement::targets: scopes_.back().targets[last_label_] = s.labels; break;
      case Statement::declaration: declare(s.declared); break;
      case Statement::instruction: instruction(s);
    }
  }
  statement_ = nullptr;
  leave_function();
  close();
}

// Static shared memory of the kernel: the module's variables that it names, its own, then what is dynamic.
void Decoder::layout_shared(const std::vector<Statement>& statements) {
  std::unordered_map<std::string_view, const Declaration*> of_module;
  for (const Declaration& d : module_.syntax().variables) {
    if (d.where == Declaration::shared) of_module[d.name] = &d;
  }
  std::vector<const Declaration*> dynamic;
  const auto use = [&](std::string_view name) {
    const auto known = of_module.find(name);
    if (known == of_module.end()) return;
    if (known->second->external) {
      dynamic.push_back(known->second);
    } else {
      declare(*known->second);
    }
    of_module.erase(known);
  };
  uint32_t own = 0;
  for (const Statement& s : statements) {
    if (s.kind == Statement::declaration && s.declared.where == Declaration::shared) {
      own = rounded_up(own, s.declared.align) + s.declared.bytes;
    }
    for (const SyntaxOperand& o : s.operands) use(o.text);
  }
  uint32_t align = 1;
  for (const Declaration* d : dynamic) align = std::max(align, d->align);
  own_shared_end_ = rounded_up(program_.static_shared_bytes, 16) + own;
  for (const Declaration* d : dynamic) {
    Place p;
    p.kind = Place::shared;
    p.address = kSharedStart + rounded_up(own_shared_end_, align);
    scopes_.back().places[d->name] = p;
  }
  program_.static_shared_bytes = rounded_up(program_.static_shared_bytes, 16);
}

void Decoder::decode(const Function& f) {
  program_.function = function_ = &f;
  const std::vector<Statement> statements = parse_body(f);
  scopes_.emplace_back();
  layout_shared(statements);
  layout_parameters(f);
  function_body(statements, {});
  while (!to_decode_.empty()) {
    const Function& callee = *module_.find(to_decode_.back());
    to_decode_.pop_back();
    Callee& c = callees_[callee.name];
    c.entry = static_cast<uint32_t>(program_.code.size());
    for (const size_t i : c.calls) program_.code[i].target = c.entry;
    c.calls.clear();
    c.decoded = true;
    function_ = &callee;
    current_callee_ = &c;
    ScopeOf inner;
    for (size_t i = 0; i < callee.parameters.size(); ++i) inner.places[callee.parameters[i].name] = c.parameters[i];
    for (size_t i = 0; i < callee.results.size(); ++i) inner.places[callee.results[i].name] = c.results[i];
    function_body(parse_body(callee), std::move(inner));
    current_callee_ = nullptr;
  }
  if (program_.static_shared_bytes > own_shared_end_) {
    throw Fault("a device function declares shared memory of its own: not supported");
  }
  program_.static_shared_bytes = own_shared_end_;
  close();
  program_.register_bytes = rounded_up(program_.register_bytes, kRegisterAlignment);
}

}  // namespace ptxsim
