-- PreConsumeTokenQuota: is there enough, then take it. :user, :token and :channel are set before.
SELECT * FROM reference."tokens" WHERE id = :token ORDER BY "tokens"."id" LIMIT 1;
SELECT "quota" FROM reference."users" WHERE id = :user;
UPDATE reference."tokens" SET "accessed_time"=1700000000,"remain_quota"=remain_quota - 600,"used_quota"=used_quota + 600 WHERE id = :token;
UPDATE reference."users" SET "quota"=quota - 600 WHERE id = :user;
