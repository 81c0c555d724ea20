# SPDX-License-Identifier: MIT
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
if(TARGET pgpt_text) # needs SentencePiece
  pgpt_unit_test(text pgpt_text PkgConfig::JANSSON)
  pgpt_unit_test(validate pgpt_text)
endif()
