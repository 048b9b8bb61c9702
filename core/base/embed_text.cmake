# Text files compiled in. Writes OUTPUT, the definitions of the functions in HEADER, each of which returns a text:
#   cmake -DHEADER=room/header.h -DNAMESPACE=lamina::room -DTEXTS=name=file,file:name=file -DOUTPUT=file.cpp -P embed_text.cmake
# Files after one name are joined in this order.
set(code "#include \"${HEADER}\"\n\nnamespace ${NAMESPACE} {\n")
string(REPLACE ":" ";" texts "${TEXTS}")
foreach(entry IN LISTS texts)
  string(REGEX MATCH "^([a-z_]+)=(.*)$" matched "${entry}")
  set(name ${CMAKE_MATCH_1})
  string(REPLACE "," ";" files "${CMAKE_MATCH_2}")
  string(APPEND code "\nstd::string_view ${name}() {\n  static constexpr std::string_view text =\n")
  foreach(file IN LISTS files)
    file(READ "${file}" text)
    # In pieces: compilers limit the length of one literal.
    string(LENGTH "${text}" length)
    set(at 0)
    while(at LESS length)
      string(SUBSTRING "${text}" ${at} 8000 piece)
      string(APPEND code "R\"lamina_asset(${piece})lamina_asset\"\n")
      math(EXPR at "${at} + 8000")
    endwhile()
  endforeach()
  string(APPEND code "      \"\";\n  return text;\n}\n")
endforeach()
file(WRITE "${OUTPUT}" "${code}\n}  // namespace ${NAMESPACE}\n")
