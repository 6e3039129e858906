// Comparisons and selections.
#include "numbers.h"
#include "ops.h"

namespace ptxsim {

namespace {

enum class Compare : uint8_t { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };

// Of floating-point numbers a comparison with a NaN is false, but true for those that end in u.
template <Compare C>
struct By {
  template <class T>
  static bool apply(T a, T b) {
    switch (C) {
      case Compare::eq: return a == b;
      case Compare::ne: return a < b || a > b;
      case Compare::lt: return a < b;
      case Compare::le: return a <= b;
      case Compare::gt: return a > b;
      case Compare::ge: return a >= b;
      case Compare::equ: return !(a < b || a > b);
      case Compare::neu: return a != b;
      case Compare::ltu: return !(a >= b);
      case Compare::leu: return !(a > b);
      case Compare::gtu: return !(a <= b);
      case Compare::geu: return !(a < b);
      case Compare::num: return a == a && b == b;
      case Compare::nan: return a != a || b != b;
    }
    return false;
  }
};

template <class T>
struct Plain {
  static T in(T x) { return x; }
};
struct Flushed {
  static float in(float x) { return flushed(x); }
};
struct F16 {
  static float in(uint16_t x) { return float_of_half(x); }
};
struct Bf16 {
  static float in(uint16_t x) { return float_of_bf16(x); }
};

enum Combine : uint8_t { kPlain, kAnd, kOr, kXor };

uint32_t combined(uint8_t how, uint32_t a, uint32_t c) {
  return how == kAnd ? a & c : how == kOr ? a | c : how == kXor ? a ^ c : a;
}

template <class C, class T, class In>
uint32_t compared(const Warp& w, const Instruction& i) {
  const T *a = w.at<T>(i.a), *b = w.at<T>(i.b);
  uint32_t bits = 0;
  for (int l = 0; l < kLanes; ++l) bits |= static_cast<uint32_t>(C::apply(In::in(a[l]), In::in(b[l]))) << l;
  return bits;
}

template <class C, class T, class In>
void setp(Warp& w, const Instruction& i, uint32_t mask) {
  const uint32_t bits = compared<C, T, In>(w, i);
  const uint32_t c = i.c.exists() ? w.predicate(i.c) : 0;
  w.set_predicate(i.d, combined(i.mode[0], bits, c), mask);
  if (i.e.exists()) w.set_predicate(i.e, combined(i.mode[0], ~bits, c), mask);
}

// The two halves to two predicates.
template <class C, class T, class In>
void setp_pair(Warp& w, const Instruction& i, uint32_t mask) {
  const T *a = w.at<T>(i.a), *b = w.at<T>(i.b);
  uint32_t low = 0, high = 0;
  for (int l = 0; l < kLanes; ++l) {
    low |= static_cast<uint32_t>(C::apply(In::in(a[2 * l]), In::in(b[2 * l]))) << l;
    high |= static_cast<uint32_t>(C::apply(In::in(a[2 * l + 1]), In::in(b[2 * l + 1]))) << l;
  }
  const uint32_t c = i.c.exists() ? w.predicate(i.c) : 0;
  w.set_predicate(i.d, combined(i.mode[0], low, c), mask);
  if (i.e.exists()) w.set_predicate(i.e, combined(i.mode[0], high, c), mask);
}

template <class C, class T, class In>
void set(Warp& w, const Instruction& i, uint32_t mask) {
  const uint32_t bits = combined(i.mode[0], compared<C, T, In>(w, i), i.c.exists() ? w.predicate(i.c) : 0);
  uint32_t* d = w.at<uint32_t>(i.d);
  const uint32_t one = i.mode[1] ? std::bit_cast<uint32_t>(1.0f) : kAll;
  for_lanes(mask, [&](int l) { d[l] = bits >> l & 1 ? one : 0; });
}

enum class Form : uint8_t { setp, pair, set };

template <Form Shape, class C>
Handler typed(Type t, bool ftz) {
#define PTXSIM_FORM(T, In) \
  (Shape == Form::setp ? &setp<C, T, In> : Shape == Form::pair ? &setp_pair<C, T, In> : &set<C, T, In>)
  switch (t) {
    case Type::b16:
    case Type::u16: return PTXSIM_FORM(uint16_t, Plain<uint16_t>);
    case Type::s16: return PTXSIM_FORM(int16_t, Plain<int16_t>);
    case Type::b32:
    case Type::u32: return PTXSIM_FORM(uint32_t, Plain<uint32_t>);
    case Type::s32: return PTXSIM_FORM(int32_t, Plain<int32_t>);
    case Type::b64:
    case Type::u64: return PTXSIM_FORM(uint64_t, Plain<uint64_t>);
    case Type::s64: return PTXSIM_FORM(int64_t, Plain<int64_t>);
    case Type::f32:
      if (ftz) return PTXSIM_FORM(float, Flushed);
      return PTXSIM_FORM(float, Plain<float>);
    case Type::f64: return PTXSIM_FORM(double, Plain<double>);
    case Type::f16:
    case Type::f16x2: return PTXSIM_FORM(uint16_t, F16);
    case Type::bf16:
    case Type::bf16x2: return PTXSIM_FORM(uint16_t, Bf16);
    default: return nullptr;
  }
#undef PTXSIM_FORM
}

template <Form Shape>
Handler compare_handler(Compare c, Type t, bool ftz) {
  switch (c) {
#define PTXSIM_CASE(name) \
  case Compare::name: return typed<Shape, By<Compare::name>>(t, ftz)
    PTXSIM_CASE(eq);
    PTXSIM_CASE(ne);
    PTXSIM_CASE(lt);
    PTXSIM_CASE(le);
    PTXSIM_CASE(gt);
    PTXSIM_CASE(ge);
    PTXSIM_CASE(equ);
    PTXSIM_CASE(neu);
    PTXSIM_CASE(ltu);
    PTXSIM_CASE(leu);
    PTXSIM_CASE(gtu);
    PTXSIM_CASE(geu);
    PTXSIM_CASE(num);
    PTXSIM_CASE(nan);
#undef PTXSIM_CASE
  }
  return nullptr;
}

Compare take_compare(Decoder& d) {
  static constexpr struct {
    const char* name;
    Compare compare;
  } kNames[] = {{"eq", Compare::eq},   {"ne", Compare::ne},   {"lt", Compare::lt},   {"le", Compare::le},
                {"gt", Compare::gt},   {"ge", Compare::ge},   {"lo", Compare::lt},   {"ls", Compare::le},
                {"hi", Compare::gt},   {"hs", Compare::ge},   {"equ", Compare::equ}, {"neu", Compare::neu},
                {"ltu", Compare::ltu}, {"leu", Compare::leu}, {"gtu", Compare::gtu}, {"geu", Compare::geu},
                {"num", Compare::num}, {"nan", Compare::nan}};
  for (const auto& n : kNames) {
    if (d.take(n.name)) return n.compare;
  }
  d.fail("no comparison");
}

uint8_t take_combine(Decoder& d) { return d.take("and") ? kAnd : d.take("or") ? kOr : d.take("xor") ? kXor : kPlain; }

bool decode_setp(Decoder& d) {
  const Compare c = take_compare(d);
  const uint8_t combine = take_combine(d);
  const bool ftz = d.take("ftz");
  const Type t = d.type();
  const bool pair = t == Type::f16x2 || t == Type::bf16x2;
  const Handler run = pair ? compare_handler<Form::pair>(c, t, ftz) : compare_handler<Form::setp>(c, t, ftz);
  if (!run) d.no_form();
  if (d.count() != (combine == kPlain ? 3u : 4u)) d.fail("another number of operands is expected");
  Instruction i = d.begin(run, Pipe::alu);
  i.a = d.source(1, t), i.b = d.source(2, t);
  if (combine != kPlain) i.c = d.source(3, Type::pred);
  i.d = d.destination(0, Type::pred);
  if (!d.written(0).second.empty()) i.e = d.predicate_named(d.written(0).second);
  i.mode[0] = combine;
  return d.emit(i), true;
}

bool decode_set(Decoder& d) {
  const Compare c = take_compare(d);
  const uint8_t combine = take_combine(d);
  const bool ftz = d.take("ftz");
  const Type to = d.type(), t = d.type();
  const Handler run = compare_handler<Form::set>(c, t, ftz);
  if (!run || bytes_of(to) != 4 || to == Type::f16x2 || to == Type::bf16x2) d.no_form();
  Instruction i = d.begin(run, Pipe::alu);
  i.a = d.source(1, t), i.b = d.source(2, t);
  if (combine != kPlain) i.c = d.source(3, Type::pred);
  i.d = d.destination(0, to);
  i.mode[0] = combine, i.mode[1] = to == Type::f32;
  return d.emit(i), true;
}

template <class T>
void selp(Warp& w, const Instruction& i, uint32_t mask) {
  const T *a = w.at<T>(i.a), *b = w.at<T>(i.b);
  T* d = w.at<T>(i.d);
  const uint32_t p = w.predicate(i.c);
  for_lanes(mask, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}

void selp_predicate(Warp& w, const Instruction& i, uint32_t mask) {
  const uint32_t p = w.predicate(i.c);
  w.set_predicate(i.d, (w.predicate(i.a) & p) | (w.predicate(i.b) & ~p), mask);
}

template <class T, class C>
void slct(Warp& w, const Instruction& i, uint32_t mask) {
  const T *a = w.at<T>(i.a), *b = w.at<T>(i.b);
  const C* c = w.at<C>(i.c);
  T* d = w.at<T>(i.d);
  for_lanes(mask, [&](int l) { d[l] = c[l] >= 0 ? a[l] : b[l]; });
}

// copysign d, a, b: the sign of a, the rest of b.
template <class T>
struct CopySign {
  static T apply(T a, T b) {
    constexpr T kSign = T{1} << (8 * sizeof(T) - 1);
    return (a & kSign) | (b & ~kSign);
  }
};

enum Test : uint8_t { kFinite, kInfinite, kNumber, kNotANumber, kNormal, kSubnormal };

template <class T>
void testp(Warp& w, const Instruction& i, uint32_t mask) {
  const T* a = w.at<T>(i.a);
  uint32_t bits = 0;
  for (int l = 0; l < kLanes; ++l) {
    const int kind = std::fpclassify(a[l]);
    bool is = false;
    switch (i.mode[0]) {
      case kFinite: is = kind != FP_NAN && kind != FP_INFINITE; break;
      case kInfinite: is = kind == FP_INFINITE; break;
      case kNumber: is = kind != FP_NAN; break;
      case kNotANumber: is = kind == FP_NAN; break;
      case kNormal: is = kind == FP_NORMAL; break;
      case kSubnormal: is = kind == FP_SUBNORMAL; break;
    }
    bits |= static_cast<uint32_t>(is) << l;
  }
  w.set_predicate(i.d, bits, mask);
}

bool decode_testp(Decoder& d) {
  static constexpr std::string_view kNames[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
  uint8_t test = 255;
  for (uint8_t k = 0; k < 6; ++k) {
    if (d.take(kNames[k])) test = k;
  }
  const Type t = d.type();
  Instruction i = d.begin(t == Type::f32 ? &testp<float> : &testp<double>, Pipe::alu);
  if (test == 255 || !is_float(t) || bytes_of(t) < 4) d.no_form();
  i.mode[0] = test;
  i.d = d.destination(0, Type::pred), i.a = d.source(1, t);
  return d.emit(i), true;
}

}  // namespace

bool decode_comparisons(Decoder& d) {
  const std::string_view op = d.op();
  if (op == "setp") return decode_setp(d);
  if (op == "set") return decode_set(d);
  if (op == "testp") return decode_testp(d);
  if (op == "selp") {
    const Type t = d.type();
    const int bytes = bytes_of(t);
    const Handler run = t == Type::pred ? &selp_predicate
                        : bytes == 2    ? &selp<uint16_t>
                        : bytes == 4    ? &selp<uint32_t>
                        : bytes == 8    ? &selp<uint64_t>
                                        : nullptr;
    simple(d, run, Pipe::alu, t, {t, t, Type::pred});
    return true;
  }
  if (op == "slct") {
    d.take("ftz");
    const Type t = d.type(), by = d.type();
    const int bytes = bytes_of(t);
    const Handler run = by == Type::f32 ? (bytes == 2   ? &slct<uint16_t, float>
                                           : bytes == 4 ? &slct<uint32_t, float>
                                                        : &slct<uint64_t, float>)
                                        : (bytes == 2   ? &slct<uint16_t, int32_t>
                                           : bytes == 4 ? &slct<uint32_t, int32_t>
                                                        : &slct<uint64_t, int32_t>);
    simple(d, run, Pipe::alu, t, {t, t, by});
    return true;
  }
  if (op == "copysign") {
    const Type t = d.type();
    simple(d, t == Type::f32 ? &binary<CopySign<uint32_t>, uint32_t> : &binary<CopySign<uint64_t>, uint64_t>, Pipe::alu,
           t, {t, t});
    return true;
  }
  return false;
}

}  // namespace ptxsim
