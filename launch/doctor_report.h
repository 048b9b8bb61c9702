// What `lamina doctor` has to say: one line per finding, and for every problem how to mend it.
#pragma once

#include <string>
#include <vector>

namespace lamina::doctor {

enum class Status { ok, note, problem };  // a note may be wanted, or cost speed; a problem ends some run

struct Finding {
  Status status = Status::ok;
  std::string topic;   // "memory"
  std::string text;    // "23.4 GiB, 21.0 GiB of it available"
  std::string remedy;  // of problems always, of notes where there is one
};

class Report {
 public:
  void ok(std::string topic, std::string text);
  void note(std::string topic, std::string text, std::string remedy = "");
  void problem(std::string topic, std::string text, std::string remedy);

  const std::vector<Finding>& findings() const { return findings_; }
  int num_problems() const;
  std::string text() const;
  std::string json() const;  // one object: {"status", "problems", "findings": [{"status", "topic", "text", "remedy"}]}

  // Travels between ranks.
  static std::vector<Finding> parse(const std::string& json);
  void add(Finding finding) { findings_.push_back(std::move(finding)); }

 private:
  std::vector<Finding> findings_;
};

}  // namespace lamina::doctor
