#include "launch/report/page.h"

#include <gmock/gmock.h>

#include "launch/report/assets.h"
#include "tests/launch/report/report_support.h"

namespace lamina::report {
namespace {

using namespace testing_report;
using testing::HasSubstr;
using testing::Not;

std::string between(const std::string& text, const std::string& before, const std::string& after) {
  const size_t begin = text.find(before) + before.size();
  return text.substr(begin, text.find(after, begin) - begin);
}

std::string data_of(const std::string& page) {
  return between(page, "<script type=\"application/json\" id=\"data\">", "</script>");
}

TEST(Page, NothingInTheDataLeavesItsElement) {
  const std::string evil = "</script><script>alert(1)</script><!-- <script> & \xff";
  const json document = {{"kind", "runs"}, {"name", evil}, {evil, 1}};
  const std::string page = to_html(document, evil);
  const std::string data = data_of(page);
  EXPECT_THAT(data, Not(HasSubstr("<")));
  const json back = json::parse(data);
  EXPECT_EQ(back["name"].get<std::string>().substr(0, 41), evil.substr(0, 41));  // the last byte is no UTF-8
  EXPECT_TRUE(back.contains("kind"));
  EXPECT_THAT(page, Not(HasSubstr("alert(1)</script>")));
  EXPECT_THAT(page, HasSubstr("<title>&lt;/script&gt;&lt;script&gt;alert(1)"));
}

TEST(Page, AsksTheNetworkForNothing) {
  const std::string page = to_html({{"kind", "runs"}}, "a");
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
  for (const char* address :
       {"http:", "https:", "//cdn", "src=", "@import", "url(", "<link", "fetch(", "XMLHttpRequest"})
    EXPECT_THAT(page, Not(HasSubstr(address))) << address;
  EXPECT_THAT(page, HasSubstr(std::string(scripts())));
  EXPECT_THAT(page, HasSubstr(std::string(style_sheet())));
  // Inside its element, a script must not look like its end.
  EXPECT_THAT(std::string(scripts()), Not(HasSubstr("</script")));
}

TEST(Page, OfOneRunHasItsData) {
  const TemporaryFolder folder;
  write_run(make_run({.name = "alone"}), folder.path() / "a");
  const std::string page = make_page({folder.path() / "a"});
  const json document = json::parse(data_of(page));
  EXPECT_EQ(document["kind"], "runs");
  EXPECT_EQ(document["runs"][0]["name"], "alone");
  EXPECT_FALSE(document.contains("comparison"));
  EXPECT_THAT(page, HasSubstr("<title>alone</title>"));
}

TEST(Page, OfTwoRunsComparesThem) {
  const TemporaryFolder folder;
  write_run(make_run({.name = "a"}), folder.path() / "a");
  MadeRun other = make_run({.name = "b"});
  other.metrics[1]["loss"] = 7.0;
  write_run(other, folder.path() / "b");
  const json document = json::parse(data_of(make_page({folder.path() / "a", folder.path() / "b"})));
  EXPECT_EQ(document["runs"].size(), 2u);
  EXPECT_THAT(document["comparison"]["against"][0]["sentences"][1].get<std::string>(), HasSubstr("step 2, loss"));
}

TEST(Page, RefusesARunTwiceAndASweepBesideOthers) {
  const TemporaryFolder folder;
  write_run(make_run(), folder.path() / "a");
  EXPECT_THAT(message_of([&] {
                make_page({folder.path() / "a", folder.path() / "b" / ".." / "a"});
              }),
              HasSubstr("no such folder"));  // b is not there
  EXPECT_THAT(message_of([&] {
                make_page({folder.path() / "a", folder.path() / "." / "a"});
              }),
              HasSubstr("the same folder as"));
  const fs::path sweep = folder.path() / "sweep";
  fs::create_directories(sweep);
  study::write_sweep({sweep, "ladder", {{"s-a-1", "s", "a", 1}}});
  EXPECT_THAT(message_of([&] { make_page({folder.path() / "a", sweep}); }), HasSubstr("expected it alone"));
  EXPECT_EQ(json::parse(data_of(make_page({sweep})))["sweep"]["runs"][0]["state"], "not started");
}

TEST(Page, RefusesBrokenFolders) {
  const TemporaryFolder folder;
  const fs::path run = folder.path() / "a";
  EXPECT_THAT(message_of([&] { make_page({run}); }), HasSubstr("no such folder"));
  write_run(make_run(), run);
  io::write_file_atomically(run / "metrics.jsonl", "{\"step\": 1}\nnonsense\n");
  EXPECT_THAT(message_of([&] { make_page({run}); }), HasSubstr("metrics.jsonl:2: found 'nonsense'"));
  io::write_file_atomically(run / "metrics.jsonl", "");
  EXPECT_THAT(message_of([&] { make_page({run}); }), HasSubstr("found no rows"));
  fs::remove(run / "config.yaml");
  EXPECT_THAT(message_of([&] { make_page({run}); }), HasSubstr("found no config.yaml"));
}

}  // namespace
}  // namespace lamina::report
