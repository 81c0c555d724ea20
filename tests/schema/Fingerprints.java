// SPDX-License-Identifier: MIT
// Prints name, CRC-64-AVRO and Parsing Canonical Form of each .avsc named on the command line, as
// Java Avro computes them. Run by tests/schema/fingerprints.py.
import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.avro.Schema;
import org.apache.avro.SchemaNormalization;

public class Fingerprints {
    public static void main(String[] paths) throws Exception {
        for (String path : paths) {
            Schema schema = new Schema.Parser().parse(Files.readString(Path.of(path)));
            System.out.printf("%s %016x %s%n", Path.of(path).getFileName(),
                SchemaNormalization.parsingFingerprint64(schema),
                SchemaNormalization.toParsingForm(schema));
        }
    }
}
