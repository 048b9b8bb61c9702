#include "trainer/record/metrics.h"

#include <fmt/format.h>

#include <cmath>

namespace lamina {
namespace {

void append_string(std::string& out, std::string_view text) {
  out += '"';
  for (char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

// fmt writes the shortest digits that read back to the same double.
void append_number(std::string& out, double value) {
  out += std::isfinite(value) ? fmt::format("{}", value) : "null";
}

}  // namespace

void JsonRow::key(std::string_view name) {
  if (!body_.empty()) body_ += ", ";
  append_string(body_, name);
  body_ += ": ";
}

JsonRow& JsonRow::add(std::string_view name, double value) {
  key(name);
  append_number(body_, value);
  return *this;
}

JsonRow& JsonRow::add(std::string_view name, int64_t value) {
  key(name);
  body_ += fmt::format("{}", value);
  return *this;
}

JsonRow& JsonRow::add(std::string_view name, bool value) {
  key(name);
  body_ += value ? "true" : "false";
  return *this;
}

JsonRow& JsonRow::add(std::string_view name, std::string_view value) {
  key(name);
  append_string(body_, value);
  return *this;
}

JsonRow& JsonRow::add(std::string_view name, const JsonRow& value) {
  const std::string nested = value.to_string();  // `value` may be this row
  key(name);
  body_ += nested;
  return *this;
}

JsonRow& JsonRow::add(std::string_view name, std::span<const double> values) {
  key(name);
  body_ += '[';
  for (size_t i = 0; i < values.size(); ++i) {
    if (i > 0) body_ += ", ";
    append_number(body_, values[i]);
  }
  body_ += ']';
  return *this;
}

JsonRow& JsonRow::append(const JsonRow& more) {
  if (!body_.empty() && !more.body_.empty()) body_ += ", ";
  body_ += more.body_;
  return *this;
}

JsonRow to_row(const StepMetrics& metrics) {
  JsonRow row;
  row.add("step", metrics.step)
      .add("loss", metrics.loss)
      .add("grad_norm", metrics.grad_norm)
      .add("lr", metrics.lr)
      .add("tokens", metrics.tokens)
      .add("tokens_per_second", metrics.tokens_per_second);
  if (metrics.mfu) row.add("mfu", *metrics.mfu);
  row.add("comm_bytes", JsonRow()
                            .add("pipeline_hidden", metrics.comm_bytes.pipeline_hidden)
                            .add("pipeline_blocks", metrics.comm_bytes.pipeline_blocks)
                            .add("data", metrics.comm_bytes.data)
                            .add("expert", metrics.comm_bytes.expert));
  if (metrics.aux_loss) row.add("aux_loss", *metrics.aux_loss);
  if (metrics.validation_loss) row.add("validation_loss", *metrics.validation_loss);
  return row;
}

}  // namespace lamina
