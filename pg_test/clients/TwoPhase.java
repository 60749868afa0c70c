import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.util.Arrays;
import java.util.stream.Collectors;
import javax.sql.XAConnection;
import javax.transaction.xa.XAException;
import javax.transaction.xa.XAResource;
import javax.transaction.xa.Xid;
import org.postgresql.xa.PGXADataSource;

/** A transaction manager on pgjdbc's XA data source: a command a line in, "ok …" or "error …" a line out. */
public class TwoPhase {
    /** A global transaction by its name. */
    record Name(String text) implements Xid {
        public int getFormatId() { return 1; }
        public byte[] getGlobalTransactionId() { return text.getBytes(StandardCharsets.UTF_8); }
        public byte[] getBranchQualifier() { return "coordinator".getBytes(StandardCharsets.UTF_8); }
    }

    private final PGXADataSource source = new PGXADataSource();
    private XAConnection xa;
    private XAResource resource;
    private Connection connection;
    private Xid started;
    private boolean prepared;

    TwoPhase(int port) throws SQLException {
        source.setServerNames(new String[] {"127.0.0.1"});
        source.setPortNumbers(new int[] {port});
        source.setDatabaseName("postgres");
        source.setUser("postgres");
        connect();
    }

    private void connect() throws SQLException {
        xa = source.getXAConnection();
        resource = xa.getXAResource();
        connection = xa.getConnection();
    }

    /** Rows from this id on, in batches, which the driver sends without waiting for answers in between. */
    private void insert(int first, int count) throws SQLException {
        for (String table : new String[] {"ft1", "ft2"}) {
            String sql = "INSERT INTO " + table + " VALUES (?, ?)";
            try (PreparedStatement statement = connection.prepareStatement(sql)) {
                for (int id = first; id < first + count; id++) {
                    statement.setInt(1, id);
                    statement.setString(2, "x");
                    statement.addBatch();
                }
                statement.executeBatch();
            }
        }
    }

    /** What is prepared, by its name. */
    private String recover() throws XAException {
        Xid[] found = resource.recover(XAResource.TMSTARTRSCAN | XAResource.TMENDRSCAN);
        return Arrays.stream(found)
            .map(xid -> " " + new String(xid.getGlobalTransactionId(), StandardCharsets.UTF_8))
            .collect(Collectors.joining());
    }

    private String run(String command, String... arguments) throws SQLException, XAException {
        switch (command) {
            case "reconnect" -> {
                xa.close();
                connect();
            }
            case "start" -> {
                started = new Name(arguments[0]);
                prepared = false;
                resource.start(started, XAResource.TMNOFLAGS);
            }
            case "insert" -> insert(Integer.parseInt(arguments[0]), 1);
            case "insert_many" ->
                insert(Integer.parseInt(arguments[0]), Integer.parseInt(arguments[1]));
            case "prepare" -> {
                resource.end(started, XAResource.TMSUCCESS);
                resource.prepare(started);
                prepared = true;
            }
            case "commit" -> {
                if (!prepared) {
                    resource.end(started, XAResource.TMSUCCESS);
                }
                resource.commit(started, !prepared);
            }
            case "rollback" -> {
                if (!prepared) {
                    resource.end(started, XAResource.TMFAIL);
                }
                resource.rollback(started);
            }
            case "recover" -> {
                return recover();
            }
            case "commit_recovered" -> resource.commit(new Name(arguments[0]), false);
            case "rollback_recovered" -> resource.rollback(new Name(arguments[0]));
            default -> throw new IllegalArgumentException(command);
        }
        return "";
    }

    /** The SQLSTATE where there is one, and the first line of the message. */
    private static String describe(Throwable error) {
        for (Throwable cause = error; cause != null; cause = cause.getCause()) {
            if (cause instanceof SQLException sql) {
                return sql.getSQLState() + " " + sql.getMessage().lines().findFirst().orElse("");
            }
        }
        return error.toString().lines().findFirst().orElse("");
    }

    public static void main(String[] arguments) throws Exception {
        TwoPhase manager = new TwoPhase(Integer.parseInt(arguments[0]));
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            try {
                String[] rest = Arrays.copyOfRange(words, 1, words.length);
                System.out.println("ok" + manager.run(words[0], rest));
            } catch (SQLException | XAException | RuntimeException error) {
                System.out.println("error " + describe(error));
            }
        }
    }
}
