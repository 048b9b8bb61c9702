#include "trainer/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <system_error>
#include <utility>

#include "core/base/error.h"

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

MetricsWriter::MetricsWriter(const std::filesystem::path& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) throw Error("{}: can't open for appending: {}", path.string(), std::generic_category().message(errno));
}

MetricsWriter::~MetricsWriter() {
  if (fd_ >= 0) ::close(fd_);
}

MetricsWriter::MetricsWriter(MetricsWriter&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

MetricsWriter& MetricsWriter::operator=(MetricsWriter&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    path_ = std::move(other.path_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void MetricsWriter::write(const JsonRow& row) {
  if (fd_ < 0) return;
  const std::string line = row.to_string() + "\n";
  for (size_t written = 0; written < line.size();) {
    const ssize_t n = ::write(fd_, line.data() + written, line.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error("{}: can't append a row: {}", path_.string(), std::generic_category().message(errno));
    written += static_cast<size_t>(n);
  }
}

}  // namespace lamina
