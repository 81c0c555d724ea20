# SPDX-License-Identifier: MIT
# Writes the .avsc texts as byte arrays, in the order of enum record_type.
set(text "/* Made from the .avsc texts by cmake/embed.cmake. */\n#include \"schema/embedded.h\"\n\n")
set(table "const char *const embedded_schemas[RECORD_TYPE_COUNT] = {\n")
foreach(record ${RECORDS})
  file(READ "${DIRECTORY}/${record}.avsc" bytes HEX)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
  string(APPEND text "static const char text_${record}[] = {${bytes}0};\n")
  string(APPEND table "    text_${record},\n")
endforeach()
file(WRITE "${OUTPUT}" "${text}\n${table}};\n")
